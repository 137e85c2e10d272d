"""Backbone and head of a model, separated by trying; no code for each model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.mlx_lm_api import frozen_names, make_prompt_cache, shallow_copy


class SplitModel(NamedTuple):
    """A model as two functions."""

    backbone: Callable[..., mx.array]  # (ids (N, T), cache=list) -> hidden states (N, T, D)
    head: Callable[[mx.array], mx.array]  # hidden states (S, D) -> logits (S, V)


def split_model(model: nn.Module) -> SplitModel | None:
    """Backbone and head of a model, found by trying; None where they cannot be separated.

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
            parts = SplitModel(path[depth][1], _Head(path[:depth], path[depth]))
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


def _is_split(model: nn.Module, parts: SplitModel, ids: mx.array, expected: mx.array) -> bool:
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
    same: Any = mx.allclose(
        logits.astype(mx.float32), expected.astype(mx.float32), 1e-3, 1e-3, equal_nan=True
    )
    return bool(same.item())


class _BackboneStub:
    """Replaces the backbone inside the head: returns the given states, else passes all on."""

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
        self._stub = _BackboneStub(backbone[1])
        copies = [shallow_copy(module) for _, module in outer]
        names = [name for name, _ in outer[1:]] + [backbone[0]]
        for copy, name, inner in zip(copies, names, [*copies[1:], self._stub], strict=True):
            dict.__setitem__(copy, name, inner)
        self._outer = copies[0]

    def __call__(self, hidden: mx.array) -> mx.array:
        self._stub.states = hidden[None]
        try:
            return self._outer(mx.zeros((1, len(hidden)), dtype=mx.int32))[0]
        finally:
            self._stub.states = None


Slot = tuple[nn.Module, str]  # a module and the name of one of its arrays


def outer_slots(model: nn.Module) -> list[Slot]:
    """What is trained outside the layers: the head's own arrays, or an embedding's it shares."""
    inside = {id(m) for layer in model.layers for _, m in layer.named_modules()}
    outer = [m for _, m in model.named_modules() if id(m) not in inside]
    return [
        (module, name)
        for module in outer
        for name, value in module.items()
        # What begins with _ is not a parameter to MLX (rope's frequencies).
        if isinstance(value, mx.array) and name[0] != "_" and name not in frozen_names(module)
    ]


def trained_head(
    parts: SplitModel, slots: Sequence[Slot], chain: list[mx.array] | None, key: mx.array | None
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
