"""What a level hands on to those that continue it."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from orpo_mlx.model.backbone import split_model
from orpo_mlx.model.tree_forward import (
    LevelArrays,
    LevelList,
    PrefixKVCache,
    TreeCall,
    UnknownCacheError,
    hidden_states,
    level_caches,
)
from orpo_mlx.training.forward_path import fast_path
from tests import tiny

pytestmark = pytest.mark.touchy

HEADS, SIZE = 2, 4


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def keys_of(rows: int, length: int, seed: int) -> mx.array:
    return random(rows, HEADS, length, SIZE, seed=seed)


LEVELS = [keys_of(1, 3, 1), keys_of(2, 4, 2), keys_of(3, 2, 3)]
ROWS = [mx.array([0, 0]), mx.array([1, 0, 1])]  # which row of the level before each continues


def weighed(fetched: list[tuple[mx.array, mx.array]]) -> mx.array:
    """A number to which each key and value of each level adds in its own way."""
    total = mx.array(0.0)
    for level, (keys, values) in enumerate(fetched):
        total += (random(*keys.shape, seed=10 + level) * keys**2).sum()
        total += (random(*values.shape, seed=20 + level) * values**3).sum()
    return total


def by_levels(one: mx.array, two: mx.array, three: mx.array) -> mx.array:
    root = PrefixKVCache()
    fetched = [root.update_and_fetch(one, 2 * one)]
    inner = root.fork(ROWS[0])
    fetched.append(inner.update_and_fetch(two, 2 * two))
    leaf = inner.fork(ROWS[1])
    fetched.append(leaf.update_and_fetch(three, 2 * three))
    assert [c.offset for c in (root, inner, leaf)] == [3, 7, 9]
    assert [c.size() for c in (root, inner, leaf)] == [3, 7, 9]
    assert [keys.shape[2] for keys, _ in fetched] == [3, 7, 9]
    return weighed(fetched)


def by_hand(one: mx.array, two: mx.array, three: mx.array) -> mx.array:
    second = mx.concatenate([one[mx.array([0, 0])], two], axis=2)
    third = mx.concatenate([second[mx.array([1, 0, 1])], three], axis=2)
    return weighed([(keys, 2 * keys) for keys in (one, second, third)])


def test_levels_of_keys_and_values_are_their_concatenation_with_its_gradient() -> None:
    value, grads = mx.value_and_grad(by_levels, argnums=(0, 1, 2))(*LEVELS)
    wanted_value, wanted = mx.value_and_grad(by_hand, argnums=(0, 1, 2))(*LEVELS)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
    for level, expected in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(level, expected, rtol=1e-5, atol=1e-6)


def test_a_level_can_be_continued_more_than_once() -> None:
    root = PrefixKVCache()
    root.update_and_fetch(LEVELS[0], LEVELS[0])
    one, two = root.fork(mx.array([0, 0])), root.fork(mx.array([0]))
    one.update_and_fetch(LEVELS[1], LEVELS[1])
    keys, _ = two.update_and_fetch(LEVELS[1][:1], LEVELS[1][:1])
    assert keys.shape[2] == two.offset == 7
    assert root.offset == 3
    assert mx.array_equal(root.keys, LEVELS[0])


def test_a_level_is_never_falsy_so_that_models_use_it() -> None:
    """mlx-lm asks `if cache` and `if cache is None`."""
    assert PrefixKVCache()
    assert PrefixKVCache().empty()
    assert not hasattr(PrefixKVCache(), "__len__")


@pytest.mark.parametrize("window", [None, 5, 7, 100])
@pytest.mark.parametrize("held", ["by the cache", "by the model"])
def test_masks_of_levels_are_parts_of_the_whole_mask(window: int | None, held: str) -> None:
    of_cache, of_model = (window, None) if held == "by the cache" else (None, window)
    whole = np.array(create_causal_mask(9, 0, window_size=window))
    cache, start = PrefixKVCache(of_cache), 0
    for level, rows in zip(LEVELS, [*ROWS, None], strict=True):
        length = level.shape[2]
        wanted = whole[start : start + length, : start + length]
        mask = cache.make_mask(length, window_size=of_model)
        asked = cache.make_mask(length, return_array=True, window_size=of_model)
        np.testing.assert_array_equal(asked, wanted)
        if mask == "causal":
            mask = create_causal_mask(length, start)
        np.testing.assert_array_equal(mask, wanted)
        cache.update_and_fetch(level, level)
        start += length
        cache = cache if rows is None else cache.fork(rows)


def test_one_token_without_a_window_needs_no_mask() -> None:
    assert PrefixKVCache().make_mask(1) is None
    assert PrefixKVCache().make_mask(2) == "causal"


def test_recurrent_states_are_taken_at_the_rows_and_keep_their_gradient() -> None:
    rows = mx.array([1, 0, 1, 1])

    def by_level(state: mx.array) -> mx.array:
        parent = LevelArrays(2)
        parent[0] = state * 2
        child = parent.fork(rows)
        assert child[1] is None
        child_rows = child[0]
        child[0] = mx.zeros((1,))
        assert parent[0].shape == state.shape, "the parent is as before"
        return (random(*child_rows.shape) * child_rows**2).sum()

    def wanted(state: mx.array) -> mx.array:
        child_rows = mx.stack([2 * state[row] for row in (1, 0, 1, 1)])
        return (random(*child_rows.shape) * child_rows**2).sum()

    state = random(2, 3, SIZE, seed=4)
    np.testing.assert_allclose(mx.grad(by_level)(state), mx.grad(wanted)(state), rtol=1e-5)


def test_the_state_of_a_single_row_is_spread() -> None:
    parent = LevelArrays(1)
    parent[0] = random(1, 3)
    child = parent.fork(mx.array([0, 0, 0]))
    np.testing.assert_array_equal(child[0], mx.repeat(parent[0], 3, axis=0))
    assert type(child) is LevelArrays


def test_a_list_continues_each_of_its_entries() -> None:
    parent = LevelList(PrefixKVCache(), LevelArrays(1))
    parent[0].update_and_fetch(LEVELS[1], LEVELS[1])
    parent[1][0] = random(2, 3)
    child = parent.fork(mx.array([1]))
    keys, _ = child[0].update_and_fetch(LEVELS[2][:1], LEVELS[2][:1])
    np.testing.assert_array_equal(keys[:, :, :4], LEVELS[1][1:])
    np.testing.assert_array_equal(child[1][0], parent[1][0][1:])
    assert type(child) is LevelList


class WithCaches(nn.Module):
    def __init__(self, *entries: Any):
        super().__init__()
        self._entries = entries

    def make_cache(self) -> list[Any]:
        return list(self._entries)


class NewCache(KVCache):
    """A subclass may do anything: only the very classes that were read are known."""


def test_known_caches_become_levels() -> None:
    entries = [
        KVCache(),
        ChunkedKVCache(8),
        RotatingKVCache(max_size=5),
        ArraysCache(2),
        CacheList(ArraysCache(1), KVCache()),
    ]
    plain, chunked, window, arrays, both = level_caches(WithCaches(*entries))
    assert [type(c) for c in (plain, chunked, window)] == [PrefixKVCache] * 3
    assert (plain.max_size, chunked.max_size, window.max_size) == (None, None, 5)
    assert isinstance(arrays, LevelArrays)
    assert len(arrays.cache) == 2
    assert [type(c) for c in both.caches] == [LevelArrays, PrefixKVCache]


@pytest.mark.parametrize(
    "entry", [NewCache(), QuantizedKVCache(), CacheList(KVCache(), NewCache())]
)
def test_a_cache_class_that_nobody_has_read_is_named(entry: Any) -> None:
    name = "QuantizedKVCache" if isinstance(entry, QuantizedKVCache) else "NewCache"
    with pytest.raises(UnknownCacheError, match=f"^{name}$"):
        level_caches(WithCaches(KVCache(), entry))


def test_a_recurrent_cache_that_counts_padding_is_not_continued() -> None:
    with pytest.raises(UnknownCacheError, match="ArraysCache"):
        level_caches(WithCaches(ArraysCache(1, left_padding=[1])))


def test_a_model_with_an_unknown_cache_goes_plain_and_says_why() -> None:
    model, _ = tiny.build_model("llama")
    model.make_cache = lambda: [NewCache() for _ in model.layers]
    path, reason = fast_path(model)
    assert (path.layout, path.parts) == ("padded", None)
    assert reason == "it uses a NewCache, which the prefix tree cannot continue"


IDS = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_every_call_runs_once_and_states_come_call_by_call() -> None:
    model, _ = tiny.build_model("llama")
    parts = split_model(model)
    assert parts is not None
    runs = []

    def counted(ids: mx.array, cache: Any) -> mx.array:
        runs.append(ids.shape)
        return parts.backbone(ids, cache=cache)

    first = TreeCall(IDS[:1], -1, mx.array([0]), mx.array([4, 1]))
    nothing = TreeCall(IDS[:, :2], 0, mx.array([0, 0]), mx.array([], dtype=mx.int32))
    last = TreeCall(IDS[:, 2:4], 1, mx.array([1, 0]), mx.array([3, 0]))
    grads = hidden_states(model, parts._replace(backbone=counted), [first, nothing, last])
    assert runs == [(1, 5), (2, 2), (2, 2)]
    # Each by one forward of its whole sequence.
    start, middle = IDS[0].tolist(), IDS[:, :2].tolist()
    upper = [*start, *middle[1], *IDS[0, 2:4].tolist()]
    lower = [*start, *middle[0], *IDS[1, 2:4].tolist()]
    wanted = [(start, 4), (start, 1), (lower, 8), (upper, 7)]
    for state, (ids, position) in zip(grads, wanted, strict=True):
        whole = parts.backbone(mx.array([ids]), cache=make_prompt_cache(model))
        np.testing.assert_allclose(state, whole[0, position], atol=1e-5)
