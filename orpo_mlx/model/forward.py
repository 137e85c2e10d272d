"""Hidden states of the scored positions along a tree of calls, on mlx-lm's cache protocol.

Model code stays as it is: what a call continues reaches it as a cache. Knows nothing of pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from orpo_mlx.model.blocks import blocks_skipped, first_trained


class TreeCall(NamedTuple):
    """One run of the backbone; inner calls, those that others continue, are not padded."""

    ids: mx.array  # (N, T) int
    parent: int  # index of the call that it continues; -1: none
    rows: mx.array  # (N,) int, the parent's row that each row continues
    scored: mx.array  # (S_i,) int into the N * T positions
    states: mx.array | None = None  # (N, T, D) from below the first block that is trained


class UnknownCacheError(Exception):
    """A cache class that cannot be continued by a tree; the message names it."""


class LevelKV:
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

    def continued(self, rows: mx.array) -> "LevelKV":
        """The entry of a level whose rows continue these."""
        new = LevelKV(self.max_size)
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

    def continued(self, rows: mx.array) -> "LevelArrays":
        new = LevelArrays(len(self.cache))
        new.cache = [None if a is None else _rows_of(a, rows, len(rows)) for a in self.cache]
        return new

    def skip(self, tokens: int) -> None:
        """Nothing: no position is counted."""


class LevelList(CacheList):
    """Entries of unlike kinds in one layer."""

    def continued(self, rows: mx.array) -> "LevelList":
        return LevelList(*(entry.continued(rows) for entry in self.caches))

    def skip(self, tokens: int) -> None:
        for entry in self.caches:
            entry.skip(tokens)


def _rows_of(array: mx.array, rows: mx.array | None, count: int) -> mx.array:
    """The rows that continue; a single row is spread, whose gradient is a sum and no scatter."""
    if array.shape[0] == 1:
        return mx.broadcast_to(array, (count, *array.shape[1:]))
    return array if rows is None else array[rows]


def level_caches(model: nn.Module) -> list[Any]:
    """Fresh entries for every layer; raises UnknownCacheError for a class that is not known."""
    return [_level_entry(entry) for entry in make_prompt_cache(model)]


def _level_entry(entry: Any) -> Any:
    kind = type(entry)
    if kind in (KVCache, ChunkedKVCache):
        return LevelKV()
    if kind is RotatingKVCache:
        return LevelKV(entry.max_size)
    if kind is ArraysCache and entry.left_padding is None and entry.lengths is None:
        return LevelArrays(len(entry.cache))
    if kind is CacheList:
        return LevelList(*map(_level_entry, entry.caches))
    raise UnknownCacheError(kind.__name__)


class Parts(NamedTuple):
    """A model as two functions."""

    backbone: Callable[..., mx.array]  # (ids (N, T), cache=list) -> hidden states (N, T, D)
    head: Callable[[mx.array], mx.array]  # hidden states (S, D) -> logits (S, V)


def hidden_states(model: nn.Module, parts: Parts, calls: Sequence[TreeCall]) -> mx.array:
    """The states at the scored positions of all calls, (S, D), every call run once."""
    states = [
        hidden.reshape(-1, hidden.shape[-1])[call.scored]
        for call, hidden in zip(calls, iter_calls(model, parts, calls), strict=True)
        if call.scored.size
    ]
    return mx.concatenate(states)


def iter_calls(model: nn.Module, parts: Parts, calls: Sequence[TreeCall]) -> Iterator[mx.array]:
    """The backbone's output of one call after another, (N, T, D).

    A call with states begins at the first block that is trained.
    """
    caches: list[list[Any]] = []
    first = first_trained(model) if calls[0].states is not None else 0
    for ids, parent, rows, _, states in calls:
        if parent < 0:
            cache = level_caches(model)
        else:
            cache = [entry.continued(rows) for entry in caches[parent]]
        caches.append(cache)
        if states is None:
            hidden = parts.backbone(ids, cache=cache)
        else:
            with blocks_skipped(model, lambda n: n < first, states):
                hidden = parts.backbone(ids, cache=cache)
            for entry in cache[:first]:
                entry.skip(ids.shape[1])
        yield hidden


Slot = tuple[nn.Module, str]  # a module and the name of one of its arrays


def outer_slots(model: nn.Module) -> list[Slot]:
    """What is trained outside the layers: the head's own arrays, or an embedding's it shares."""
    inside = {id(m) for layer in model.layers for _, m in layer.named_modules()}
    outer = [m for _, m in model.named_modules() if id(m) not in inside]
    return [
        (module, name)
        for module in outer
        for name, value in module.items()
        # What begins with _ is no parameter to MLX (rope's frequencies).
        if isinstance(value, mx.array) and name[0] != "_" and name not in module._no_grad
    ]


def trained_head(
    parts: Parts, slots: Sequence[Slot], chain: list[mx.array] | None, key: mx.array | None
) -> Callable[..., mx.array]:
    """(states, number of the first, *values of the slots) -> logits, for a head that runs twice.

    Its dropout draws from `chain`, and follows from `key` and the number whenever it runs.
    """

    def head(hidden: mx.array, start: int, *values: mx.array) -> mx.array:
        kept = [module[name] for module, name in slots]
        _fill(slots, values)
        if chain is not None and key is not None:
            chain[:] = [key + mx.array([start, 0], dtype=mx.uint32)]
        try:
            return parts.head(hidden)
        finally:
            _fill(slots, kept)

    return head


def _fill(slots: Sequence[Slot], values: Sequence[mx.array]) -> None:
    for (module, name), value in zip(slots, values, strict=True):
        module[name] = value


def plain_logits(model: nn.Module, calls: Sequence[TreeCall]) -> mx.array:
    """Logits at the scored positions of calls that continue none, (S, V), by the model's own
    forward."""
    # A fresh cache: without one gemma3n computes another function.
    logits = [(model(c.ids, cache=make_prompt_cache(model)), c.scored) for c in calls]
    return mx.concatenate([x.reshape(-1, x.shape[-1])[scored] for x, scored in logits])


def find_parts(model: nn.Module) -> Parts | None:
    """Backbone and head of a model, found by trying; None where they cannot be told apart.

    The backbone is the deepest module above the layers for which head(backbone(ids)) is the
    model's own output.
    """
    path = _path_to_layers(model)
    training = model.training
    model.eval()
    try:
        ids = mx.arange(1, 5)[None]  # (1, 4)
        expected = model(ids, cache=make_prompt_cache(model))[0]
        for depth in range(len(path) - 1, 0, -1):
            parts = Parts(path[depth][1], _Head(path[:depth], path[depth]))
            if _is_split(model, parts, ids, expected):
                return parts
        return None
    finally:
        model.train(training)


def _path_to_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules from the outermost to the one that holds the layers, each with its name."""
    first = model.layers[0]
    inside = next(name for name, module in model.named_modules() if module is first)
    path, module = [("", model)], model
    for name in inside.split("."):
        if not isinstance(module, nn.Module) or not isinstance(module.get(name), nn.Module):
            break
        module = module[name]
        path.append((name, module))
    return path


def _is_split(model: nn.Module, parts: Parts, ids: mx.array, expected: mx.array) -> bool:
    try:
        hidden = parts.backbone(ids, cache=make_prompt_cache(model))
        if not isinstance(hidden, mx.array) or hidden.shape[-1] == expected.shape[-1]:
            return False
        logits = parts.head(hidden[0])
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):
        return False
    if logits.shape != expected.shape:
        return False
    # The same operations on the same values.
    same: Any = mx.allclose(logits.astype(mx.float32), expected.astype(mx.float32), 1e-3, 1e-3)
    return bool(same.item())


class _Given:
    """Stands for the backbone inside the head: returns the given states, else passes all on."""

    def __init__(self, backbone: nn.Module):
        self._backbone = backbone
        self.states: mx.array | None = None

    def __call__(self, *arguments: Any, **named: Any) -> mx.array | None:
        return self.states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


class _Head:
    """The modules around the backbone, as shallow copies with the backbone replaced."""

    def __init__(self, outer: list[tuple[str, nn.Module]], backbone: tuple[str, nn.Module]):
        self._given = _Given(backbone[1])
        copies = [_shallow(module) for _, module in outer]
        names = [name for name, _ in outer[1:]] + [backbone[0]]
        for copy, name, inner in zip(copies, names, [*copies[1:], self._given], strict=True):
            dict.__setitem__(copy, name, inner)
        self._outer = copies[0]

    def __call__(self, hidden: mx.array) -> mx.array:
        self._given.states = hidden[None]
        try:
            return self._outer(mx.zeros((1, len(hidden)), dtype=mx.int32))[0]
        finally:
            self._given.states = None


def _shallow(module: nn.Module) -> Any:
    kind: Any = type(module)
    copy = kind.__new__(kind)
    dict.update(copy, module)
    copy.__dict__.update(module.__dict__)
    return copy
