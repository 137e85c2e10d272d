"""Hidden states of the scored positions along a tree of calls, on mlx-lm's cache protocol.

Model code stays as it is: what a call continues reaches it as a cache. Knows nothing of pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.backbone import SplitModel
from orpo_mlx.model.layer_hooks import blocks_skipped, first_trained
from orpo_mlx.model.mlx_lm_api import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    create_causal_mask,
    make_prompt_cache,
)


class TreeCall(NamedTuple):
    """One run of the backbone; inner calls, those that others continue, are not padded."""

    ids: mx.array  # (N, T) int
    parent: int  # index of the call that it continues; -1: none
    rows: mx.array  # (N,) int, the parent's row that each row continues
    scored: mx.array  # (S_i,) int into the N * T positions
    states: mx.array | None = None  # (N, T, D) that go into the first block that is trained


class UnknownCacheError(Exception):
    """A cache class that cannot be continued by a tree; the message names it."""


class PrefixKVCache:
    """Keys and values of one level, after those of the levels that it continues."""

    def __init__(self, max_size: int | None = None):
        self.past: list[tuple[mx.array, mx.array, mx.array | None]] = []  # keys, values, rows
        self.keys: mx.array | None = None  # (N, H, T, D), this level's own
        self.values: mx.array | None = None
        self.offset = 0
        self.max_size = max_size  # window of the layers that mask by their cache
        self.start_position = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        self.offset += keys.shape[2]
        if not self.past:
            return keys, values
        count = keys.shape[0]
        before = [(_rows_of(k, r, count), _rows_of(v, r, count)) for k, v, r in self.past]
        return (
            mx.concatenate([*(k for k, _ in before), keys], axis=2),
            mx.concatenate([*(v for _, v in before), values], axis=2),
        )

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        window = window_size or self.max_size
        if return_array or (window and self.offset + N > window):
            return create_causal_mask(N, self.offset, window_size=window)
        return "causal" if N > 1 else None

    def maybe_trim_front(self) -> None:
        """Nothing: chunked attention masks what lies before its chunk."""

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.keys is None

    def fork(self, rows: mx.array) -> "PrefixKVCache":
        """The cache of a level whose rows continue these."""
        new = PrefixKVCache(self.max_size)
        new.offset = self.offset
        new.past = [(k, v, rows if r is None else r[rows]) for k, v, r in self.past]
        if self.keys is not None and self.values is not None:
            new.past.append((self.keys, self.values, rows))
        return new

    def skip(self, tokens: int) -> None:
        """Count tokens whose block does not run."""
        self.offset += tokens


class LevelArrays(ArraysCache):
    """The recurrent state of a level; it starts as its parent's."""

    def fork(self, rows: mx.array) -> "LevelArrays":
        new = LevelArrays(len(self.cache))
        new.cache = [None if a is None else _rows_of(a, rows, len(rows)) for a in self.cache]
        return new

    def skip(self, tokens: int) -> None:
        """Nothing: no position is counted."""


class LevelList(CacheList):
    """Entries of different kinds in one layer."""

    def fork(self, rows: mx.array) -> "LevelList":
        return LevelList(*(entry.fork(rows) for entry in self.caches))

    def skip(self, tokens: int) -> None:
        for entry in self.caches:
            entry.skip(tokens)


def _rows_of(array: mx.array, rows: mx.array | None, count: int) -> mx.array:
    """The rows that continue; one row is broadcast: its gradient is a sum, not a scatter."""
    if array.shape[0] == 1:
        return mx.broadcast_to(array, (count, *array.shape[1:]))
    return array if rows is None else array[rows]


def level_caches(model: nn.Module) -> list[Any]:
    """Fresh entries for every layer; raises UnknownCacheError for a class that is not known."""
    return [_level_entry(entry) for entry in make_prompt_cache(model)]


def _level_entry(entry: Any) -> Any:
    kind = type(entry)
    if kind in (KVCache, ChunkedKVCache):
        return PrefixKVCache()
    if kind is RotatingKVCache:
        return PrefixKVCache(entry.max_size)
    if kind is ArraysCache and entry.left_padding is None and entry.lengths is None:
        return LevelArrays(len(entry.cache))
    if kind is CacheList:
        return LevelList(*map(_level_entry, entry.caches))
    raise UnknownCacheError(kind.__name__)


def hidden_states(model: nn.Module, parts: SplitModel, calls: Sequence[TreeCall]) -> mx.array:
    """The states at the scored positions of all calls, (S, D), every call run once."""
    states = [
        hidden.reshape(-1, hidden.shape[-1])[call.scored]
        for call, hidden in zip(calls, iter_calls(model, parts, calls), strict=True)
        if call.scored.size
    ]
    return mx.concatenate(states)


def iter_calls(
    model: nn.Module, parts: SplitModel, calls: Sequence[TreeCall]
) -> Iterator[mx.array]:
    """The backbone's output of one call after another, (N, T, D).

    A call with states begins at the first block that is trained.
    """
    caches: list[list[Any]] = []
    first = first_trained(model) if calls[0].states is not None else 0
    for ids, parent, rows, _, states in calls:
        if parent < 0:
            cache = level_caches(model)
        else:
            cache = [entry.fork(rows) for entry in caches[parent]]
        caches.append(cache)
        if states is None:
            hidden = parts.backbone(ids, cache=cache)
        else:
            with blocks_skipped(model, lambda n: n < first, states):
                hidden = parts.backbone(ids, cache=cache)
            for entry in cache[:first]:
                entry.skip(ids.shape[1])
        yield hidden


def plain_logits(model: nn.Module, calls: Sequence[TreeCall]) -> mx.array:
    """Logits at the scored positions of calls that continue none, (S, V), by the model's own
    forward."""
    # A fresh cache: without one gemma3n computes something else.
    logits = [(model(c.ids, cache=make_prompt_cache(model)), c.scored) for c in calls]
    return mx.concatenate([x.reshape(-1, x.shape[-1])[scored] for x, scored in logits])
