"""Gradient checkpointing of layers: gradients as without it, nothing left behind, less memory."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import ArraysCache

from orpo_mlx.data.batching.prefix_tree import build_batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model import grad_checkpoint, lora
from orpo_mlx.model.grad_checkpoint import training_layers
from orpo_mlx.model.tree_forward import LevelArrays, PrefixKVCache
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path
from tests import tiny
from tests.model.toy_layers import SIZE, Layer, Toy, adapted, logits_loss, states

pytestmark = pytest.mark.touchy


def gradients(
    model: nn.Module, loss: Callable[..., mx.array], floats: list[mx.array], *, checkpoint: bool
) -> list[np.ndarray]:
    """The loss, and its gradient by the model's parameters and by `floats`."""

    def of(weights: dict, given: list[mx.array]) -> mx.array:
        model.update(weights)
        return loss(model, *given)

    before = model.trainable_parameters()
    with training_layers(model, checkpoint=checkpoint):
        value, gradient = mx.value_and_grad(of, argnums=(0, 1))(before, floats)
        mx.eval(value, gradient)
    model.update(before)
    return [np.array(value)] + [np.array(g) for _, g in tree_flatten(gradient)]


def assert_equal_gradients(
    model: nn.Module, loss: Callable[..., mx.array], floats: list[mx.array]
) -> None:
    kept = gradients(model, loss, floats, checkpoint=False)
    again = gradients(model, loss, floats, checkpoint=True)
    for second, first in zip(again, kept, strict=True):
        assert np.abs(first).max() > 1e-3, "nothing would be compared"
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)


def test_an_array_that_is_returned_and_stored_too_keeps_its_whole_gradient() -> None:
    """gemma4 returns the keys that its cache stores; MLX keeps one cotangent of a double output."""

    def body(layer: Layer, x: mx.array, cache: PrefixKVCache) -> tuple[mx.array, mx.array]:
        keys = layer.linear(x)[:, None]  # (N, 1, T, D)
        cache.update_and_fetch(keys, keys)
        return keys[:, 0] + x, keys

    def loss(model: Toy, x: mx.array) -> mx.array:
        cache = PrefixKVCache()
        x, shared = model.layers[0](x, cache=cache)
        assert cache.keys is cache.values
        return (x**2).sum() + 3 * (shared**2).sum() + 5 * (cache.keys**3).sum()

    assert_equal_gradients(Toy(body, 1), loss, [states()])


class Passed(NamedTuple):
    """What a block of the next test passes on."""

    states: mx.array
    scale: mx.array


def test_what_is_in_a_named_tuple_keeps_its_gradient() -> None:
    def body(layer: Layer, given: Passed) -> Passed:
        x = layer.linear(given.states) * given.scale
        return Passed(x, given.scale * x.mean())

    def loss(model: Toy, x: mx.array, scale: mx.array) -> mx.array:
        passed = Passed(x, scale)
        for layer in model.layers:
            passed = layer(passed)
        return (passed.states**2).sum() + passed.scale.sum()

    assert_equal_gradients(Toy(body), loss, [states(), mx.array([0.7])])


def test_counts_that_a_layer_changes_in_place_are_the_same_when_it_runs_again() -> None:
    """ArraysCache.advance subtracts from its lengths in place."""

    def body(layer: Layer, x: mx.array, cache: ArraysCache) -> mx.array:
        inside = mx.arange(x.shape[1]) < cache.lengths[:, None]  # (N, T)
        x = mx.where(inside[..., None], layer.linear(x), 0.1 * x)
        cache.advance(2)
        return x

    def loss(model: Toy, x: mx.array) -> mx.array:
        cache = ArraysCache(1)
        cache.prepare(lengths=[4, 2])
        for layer in model.layers:
            x = layer(x, cache=cache)
        assert cache.lengths.tolist() == [0, -2]
        return (x**2).sum()

    assert_equal_gradients(Toy(body), loss, [states(2, 5)])


def test_dropout_masks_are_the_same_when_a_layer_runs_again() -> None:
    model = adapted(dropout=0.3)

    def loss(model: nn.Module) -> mx.array:
        lora.reset_dropout(model, mx.random.key(5))
        return logits_loss(model)

    kept = gradients(model, loss, [], checkpoint=False)
    again = gradients(model, loss, [], checkpoint=True)
    for second, first in zip(again, kept, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-7)
    lora.reset_dropout(model, mx.random.key(6))
    assert again[0] != gradients(model, logits_loss, [], checkpoint=True)[0]


def test_each_layer_call_draws_masks_of_its_own() -> None:
    drawn = []
    model = adapted(dropout=0.3)
    lora.reset_dropout(model, mx.random.key(5))
    dropout = lora.KeyedDropout.__call__

    def seen(self: lora.KeyedDropout, x: mx.array) -> mx.array:
        drawn.append(tuple(self._keys[0].tolist()))
        return dropout(self, x)

    with pytest.MonkeyPatch.context() as patch, training_layers(model, checkpoint=False):
        patch.setattr(lora.KeyedDropout, "__call__", seen)
        mx.eval(logits_loss(model))
    assert len(drawn) == len(set(drawn)) == 3 * 7


def test_every_floating_array_that_goes_in_keeps_its_gradient() -> None:
    """A captured one would have the gradient 0, and nothing would show it."""

    def body(layer: Layer, x: mx.array, parts: Any, *, named: Any, cache: LevelArrays) -> mx.array:
        first, (second, listed) = parts
        state = cache[0]
        cache[0] = state * 2 + x.sum(axis=1)
        factor = first + second * listed[0] + named["inner"]["deep"]
        return layer.linear(x) * factor + state[:, None]

    def loss(model: Toy, x: mx.array, *floats: mx.array) -> mx.array:
        a, b, c, d, state = floats
        cache = LevelArrays(1)
        cache[0] = state
        for layer in model.layers:
            x = layer(x, (a, (b, [c, None, 3])), named={"inner": {"deep": d}, "no": 1}, cache=cache)
        return (x**2).sum() + (cache[0] ** 3).sum()

    floats = [mx.array([0.5 + i, 1, 2, 3]) for i in range(4)] + [mx.ones((1, SIZE))]
    assert_equal_gradients(Toy(body), loss, [states(), *floats])


def test_only_what_a_layer_makes_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the keys and values of the levels before, which went in."""
    counts: list[tuple[int, int]] = []
    checkpoint = mx.checkpoint

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: mx.array) -> Any:
            outputs = checkpoint(function)(*given)
            counts.append((len(given), len(outputs)))
            return outputs

        return run

    monkeypatch.setattr(grad_checkpoint.mx, "checkpoint", counted)
    model = adapted()
    path, _ = fast_path(model, checkpoint=True)
    calls, targets, *_ = arrays_of(build_batch([long_pair(20, 20)], [0]))
    with path.differentiated():
        path.token_logps(calls, targets)
    adapters = 2 * 7
    # Hidden states, then keys and values of the level before.
    assert counts == [(adapters + 1, 3)] * 3 + [(adapters + 3, 3)] * 3


def test_keys_and_values_of_the_levels_before_keep_their_gradient() -> None:
    def body(layer: Layer, x: mx.array, cache: PrefixKVCache) -> mx.array:
        keys, values = cache.update_and_fetch(x[:, None], layer.linear(x)[:, None])
        return x + (mx.softmax(x[:, None] @ keys.swapaxes(2, 3), axis=-1) @ values)[:, 0]

    def loss(model: Toy, x: mx.array, y: mx.array) -> mx.array:
        first = [PrefixKVCache() for _ in model.layers]
        for layer, cache in zip(model.layers, first, strict=True):
            x = layer(x, cache=cache)
        second = [cache.fork(mx.array([0, 0])) for cache in first]
        for layer, cache in zip(model.layers, second, strict=True):
            y = layer(y, cache=cache)
        assert second[0].offset == 3 + 2
        return (y**2).sum()

    assert_equal_gradients(Toy(body), loss, [states(), states(2, 2) + 1])


def test_the_classes_are_as_before_when_the_context_ends_or_fails() -> None:
    model = adapted()
    kind = type(model.layers[0])
    call = kind.__call__
    with training_layers(model, checkpoint=True):
        assert kind.__call__ is not call
        with training_layers(model, checkpoint=True):
            mx.eval(logits_loss(model))
    assert kind.__dict__["__call__"] is call
    with pytest.raises(ZeroDivisionError), training_layers(model, checkpoint=True):
        raise ZeroDivisionError
    assert kind.__dict__["__call__"] is call


def test_the_parameters_are_put_back_after_a_failure_inside_a_layer() -> None:
    def body(layer: Layer, x: mx.array) -> mx.array:
        raise ZeroDivisionError

    model = Toy(body, 1)
    weight = model.layers[0].linear.weight
    with pytest.raises(ZeroDivisionError), training_layers(model, checkpoint=True):
        model.layers[0](states())
    assert model.layers[0].linear.weight is weight


def test_a_checkpointed_block_runs_once_more_and_the_others_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted(num_hidden_layers=12)
    numbers = {id(layer.self_attn): number for number, layer in enumerate(model.layers)}
    runs: Counter[int] = Counter()
    attend = llama.Attention.__call__

    def counted(attention: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        runs[numbers[id(attention)]] += 1
        return attend(attention, *args, **kwargs)

    monkeypatch.setattr(llama.Attention, "__call__", counted)
    gradients(model, logits_loss, [], checkpoint=False)
    assert set(runs.values()) == {1}
    runs.clear()
    gradients(model, logits_loss, [], checkpoint=True)
    kept = grad_checkpoint.kept_blocks(12)
    assert runs == {number: 1 if number in kept else 2 for number in range(12)}


def long_pair(prompt: int, response: int) -> EncodedPair:
    random = np.random.default_rng(0)
    shape = (prompt, response, response)
    ids = [random.integers(1, tiny.VOCABULARY, n).astype(np.int32) for n in shape]
    return EncodedPair(*ids, "")


def activation_bytes(path: ForwardPath, pairs: list[EncodedPair]) -> int:
    """Peak memory of one gradient, less what is there before."""
    model = path.model
    batch = arrays_of(path.batch(pairs, range(len(pairs)), "response"))

    def loss(weights: dict) -> mx.array:
        model.update(weights)
        return -path.token_logps(batch[0], batch[1]).mean()

    before = model.trainable_parameters()
    mx.clear_cache()
    start = mx.get_active_memory()
    mx.reset_peak_memory()
    with path.differentiated():
        mx.eval(mx.value_and_grad(loss)(before))
    model.update(before)
    return mx.get_peak_memory() - start


def test_activations_take_at_most_half_the_memory_at_twelve_layers() -> None:
    model = adapted(num_hidden_layers=12, hidden_size=128, intermediate_size=256)
    kept, again = (
        activation_bytes(fast_path(model, checkpoint=c)[0], [long_pair(96, 96)])
        for c in (False, True)
    )
    assert again <= 0.5 * kept, (again, kept)
