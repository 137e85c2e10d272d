"""Faults planted in what a level passes on: the comparison of the families sees every one."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.base import create_causal_mask

from orpo_mlx.model.tree_forward import LevelArrays, PrefixKVCache, hidden_states
from orpo_mlx.training import forward_path as paths
from tests.families import FAST
from tests.model.comparison import Shares, by_path, judge
from tests.model.family_cases import PAIRS, kinds_of, model_of

pytestmark = pytest.mark.touchy

RECURRENT = {"lfm2", "qwen3_next", "qwen3_5", "falcon_h1", "mamba2"}
Patch = pytest.MonkeyPatch


def offset_off_by_one(patch: Patch) -> None:
    """Each level's positions begin one later; masks stay as they are."""
    fork, make_mask = PrefixKVCache.fork, PrefixKVCache.make_mask

    def later(self: PrefixKVCache, rows: mx.array) -> PrefixKVCache:
        new = fork(self, rows)
        new.offset += 1
        return new

    def mask(self: PrefixKVCache, *arguments: Any, **named: Any) -> Any:
        offset, self.offset = self.offset, sum(keys.shape[2] for keys, _, _ in self.past)
        try:
            return make_mask(self, *arguments, **named)
        finally:
            self.offset = offset

    patch.setattr(PrefixKVCache, "fork", later)
    patch.setattr(PrefixKVCache, "make_mask", mask)


def mask_shifted(patch: Patch) -> None:
    """Every token sees what the next one should see, window included."""

    def mask(
        self: PrefixKVCache, N: int, return_array: bool = False, window_size: int | None = None
    ):
        wider = create_causal_mask(N + 1, self.offset, window_size or self.max_size)
        return wider[1:, :-1]

    patch.setattr(PrefixKVCache, "make_mask", mask)


def tail_sees_the_row_before(patch: Patch) -> None:
    """In a call of tails, a row's first key and value are the row's before it."""
    update = PrefixKVCache.update_and_fetch

    def mixed(self: PrefixKVCache, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if len(self.past) == 2:
            keys, values = (
                mx.concatenate([mx.roll(a, 1, axis=0)[:, :, :1], a[:, :, 1:]], axis=2)
                for a in (keys, values)
            )
        return update(self, keys, values)

    patch.setattr(PrefixKVCache, "update_and_fetch", mixed)


def _fork_as(patch: Patch, change: Callable[[LevelArrays, mx.array], LevelArrays]) -> None:
    patch.setattr(LevelArrays, "fork", change)


FORK = LevelArrays.fork


def state_dropped(patch: Patch) -> None:
    """Recurrent layers start again in every level."""
    _fork_as(patch, lambda self, rows: LevelArrays(len(self.cache)))


def state_of_another_row(patch: Patch) -> None:
    """Recurrent layers continue the row of another pair."""
    _fork_as(patch, lambda self, rows: FORK(self, mx.roll(rows, 1)))


def convolution_shifted(patch: Patch) -> None:
    """What the convolution keeps of the last tokens is one token off."""

    def shifted(self: LevelArrays, rows: mx.array) -> LevelArrays:
        new = FORK(self, rows)
        new.cache[0] = mx.roll(new.cache[0], 1, axis=1)
        return new

    _fork_as(patch, shifted)


def tail_continues_the_row_before(patch: Patch) -> None:
    """The first pair's longer tail continues the pair's other one."""
    patch.setattr(paths, "hidden_states", lambda m, p, calls: hidden_states(m, p, split(calls, 4)))


def split(calls: Any, parent: int) -> list[Any]:
    """The last call's rows in calls of their own, the second one's after another call."""
    *others, last = calls
    length, scored = last.ids.shape[1], np.array(last.scored)
    for row in range(len(last.ids)):
        own = scored[scored // length == row] - row * length
        others.append(
            last._replace(
                ids=last.ids[row : row + 1], rows=last.rows[row : row + 1], scored=mx.array(own)
            )
        )
    others[-2] = others[-2]._replace(parent=parent, rows=mx.array([0]))
    return others


FAULTS: dict[str, list[Callable[[Patch], None]]] = {
    "attention": [offset_off_by_one, mask_shifted, tail_sees_the_row_before],
    "recurrent": [
        state_dropped,
        state_of_another_row,
        convolution_shifted,
        tail_continues_the_row_before,
    ],
}


@pytest.mark.parametrize("family", FAST)
def test_planted_faults_are_seen(family: str, monkeypatch: Patch) -> None:
    """The comparison of test_families, on the same pairs, finds each ten times what it allows."""
    kinds = kinds_of(model_of(family, None))
    assert ("recurrent" in kinds) == (family in RECURRENT)
    assert ("attention" in kinds) == (family != "mamba2")
    for fault in [fault for kind in sorted(kinds) for fault in FAULTS[kind]]:
        with monkeypatch.context() as patch:
            fault(patch)
            assert shares_of(family).wrong, fault.__doc__


def shares_of(family: str) -> Shares:
    model = model_of(family, None)
    path, _ = paths.fast_path(model)
    values = by_path(model, path, path.batch(PAIRS, range(len(PAIRS)), "response"))
    return judge(family, None).shares(values)


def test_a_call_cut_in_two_is_not_a_fault_by_itself(monkeypatch: Patch) -> None:
    """What `tail_continues_the_row_before` also does."""
    monkeypatch.setattr(
        paths, "hidden_states", lambda m, p, calls: hidden_states(m, p, split(calls, 3))
    )
    assert shares_of("mamba2").right
