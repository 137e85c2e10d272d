"""Hooks on the layers of a live model: calls are replaced for a while, left out, or watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from orpo_mlx.model.mlx_lm_api import calls_replaced, classes_replaced, make_prompt_cache

TOKENS = 8  # of the pass in which adapted layers are watched
# What models raise whose forward pass asks for more than ids; training shows it with its reason.
ERRORS = (AttributeError, TypeError, ValueError, LookupError, RuntimeError)
Around = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def block_calls(model: nn.Module, around: Around) -> Iterator[None]:
    """Send every call of the model's layers through `around(layer, call, args, kwargs)`."""
    own = {id(layer) for layer in model.layers}
    kinds = {type(layer) for layer in model.layers}
    with calls_replaced(kinds, lambda call: _through(call, around, own)):
        yield


def _through(call: Callable[..., Any], around: Around, own: set[int]) -> Callable[..., Any]:
    @wraps(call)
    def replaced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in own:
            return call(self, *args, **kwargs)
        return around(self, call, args, kwargs)

    return replaced


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def first_trained(model: nn.Module) -> int:
    """The number of the first block that has something to train; all below it are frozen."""
    for number, layer in enumerate(model.layers):
        if tree_flatten(layer.trainable_parameters()):
            return number
    return len(model.layers)


@contextmanager
def blocks_skipped(
    model: nn.Module, skipped: Callable[[int], bool], states: mx.array | None = None
) -> Iterator[None]:
    """Skipped blocks pass their input on; the last of them returns `states` where given."""
    numbers = {id(layer): n for n, layer in enumerate(model.layers)}

    def around(layer: nn.Module, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = numbers[id(layer)]
        if not skipped(number):
            return call(layer, *args, **kwargs)
        return args[0] if states is None or skipped(number + 1) else states

    with block_calls(model, around):
        yield


@contextmanager
def block_output(model: nn.Module, wanted: int) -> Iterator[list[Any]]:
    """Collect what block `wanted` returns, call by call; the blocks above it do not run."""
    last, outputs = model.layers[wanted], []

    def around(layer: nn.Module, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(layer, *args, **kwargs)
        if layer is last:
            outputs.append(result)
        return result

    with block_calls(model, around), blocks_skipped(model, lambda n: n > wanted):
        yield outputs


def find_bypassed(model: nn.Module) -> set[int]:
    """Which of the adapted layers, by `id`, the model reads or calls without their adapter.

    The pass builds a graph and computes nothing. A layer that it does not reach, such as an expert
    of another token, is not bypassed.
    """
    adapted = {id(base_layer(m)): m for _, m in model.named_modules() if "lora_a" in m}
    inside: list[int] = []  # the base layers whose adapters are being called
    bypassed = set[int]()

    def note(adapter: nn.Module) -> None:
        bypassed.add(id(adapter))

    def note_base(base: nn.Module) -> None:
        if id(base) not in inside:
            bypassed.add(id(adapted[id(base)]))

    bases = [base_layer(m) for m in adapted.values()]
    ids = mx.zeros((1, TOKENS), dtype=mx.int32)
    with (
        classes_replaced(adapted.values(), lambda kind: _watched_adapter(kind, inside, note)),
        classes_replaced(bases, lambda kind: _watched_base(kind, note_base)),
    ):
        for cache in ({}, {"cache": make_prompt_cache(model)}):
            try:
                model(ids, **cache)
            except ERRORS:
                continue
    return bypassed


def base_layer(adapter: nn.Module) -> nn.Module:
    """The layer that mlx-lm put an adapter on."""
    base: nn.Module = adapter["linear"] if "linear" in adapter else adapter["embedding"]
    return base


def _watched_adapter(kind: type, inside: list[int], note: Callable[[nn.Module], None]) -> type:
    """A class of adapters that have what their base layer has, and report who asks for it."""

    class Watched(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._inside(super().__call__, *args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                value = getattr(base_layer(self), name)
                note(self)
                return value

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self or name not in base_layer(self):
                super().__setattr__(name, value)
            else:  # gemma3n clips the weights of a layer before it calls it
                note(self)
                base_layer(self).update({name: value})

        def __missing__(self, name: str) -> Any:
            note(self)
            return base_layer(self)[name]

        def _inside(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            inside.append(id(base_layer(self)))
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()

    if hasattr(kind, "as_linear"):

        def as_linear(self: Any, x: mx.array) -> mx.array:
            result: mx.array = self._inside(super(Watched, self).as_linear, x)
            return result

        Watched.as_linear = as_linear
    return Watched


def _watched_base(kind: type, note: Callable[[nn.Module], None]) -> type:
    """A class of base layers that report every call, and every look at their arrays."""

    class Watched(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            note(self)
            return super().__call__(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            note(self)
            return value

    return Watched
