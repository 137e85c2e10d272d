"""Layers as pure functions for the time of a step: gradient checkpointing and keyed dropout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx import backend
from orpo_mlx.model.layer_hooks import block_calls
from orpo_mlx.model.lora import dropout_chain
from orpo_mlx.model.mlx_lm_api import BaseCache, attributes
from orpo_mlx.model.tree_forward import PrefixKVCache

# On the CPU the forward costs more than the gradient (exp), and running all of it twice takes over
# 1.5 times as long. The last block is never kept: its activations would add to those of the head.
KEEP_EVERY = 5


def kept_blocks(count: int) -> range:
    """The numbers of the blocks that are not checkpointed."""
    return range(0, count - 1, KEEP_EVERY) if backend.is_cpu() and count > KEEP_EVERY else range(0)


@contextmanager
def training_layers(model: nn.Module, *, checkpoint: bool) -> Iterator[None]:
    """The layers as a step needs them; active until value_and_grad has returned.

    Each layer call has dropout keys of its own, so that running it again gives the same masks.
    With `checkpoint`, only a layer's inputs are kept for the backward pass, except for every
    KEEP_EVERY-th layer on the CPU, which keeps all.
    """
    chain = dropout_chain(model)
    numbers = {id(layer): n for n, layer in enumerate(model.layers)}
    calls, start = [0] * len(numbers), [mx.array(0)]
    kept = {id(model.layers[number]) for number in kept_blocks(len(model.layers))}
    if not checkpoint and chain is None:
        yield
        return

    def around(layer: nn.Module, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None
        if chain:
            # By number and call, so that skipping a block does not change the masks of others.
            number = numbers[id(layer)]
            if chain[0] is not start[0]:
                start[0], calls[:] = chain[0], [0] * len(calls)
            calls[number] += 1
            key = chain[0] + mx.array([number, calls[number]], dtype=mx.uint32)
        if checkpoint and id(layer) not in kept:
            return checkpointed(call, (layer, *args), kwargs, chain, key)
        with _keyed(chain, key):
            return call(layer, *args, **kwargs)

    with block_calls(model, around):
        yield


@contextmanager
def _keyed(chain: list[mx.array] | None, key: mx.array | None) -> Iterator[None]:
    """Draw dropout masks from the chain that begins with `key`; then restore the outer chain."""
    if chain is None or key is None:
        yield
        return
    outer, chain[0] = chain[0], key
    try:
        yield
    finally:
        chain[0] = outer


@dataclass(frozen=True)
class _Slot:
    """The index of a floating array in a flat list: of the inputs, or of the outputs."""

    given: bool
    index: int


def checkpointed(
    call: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    chain: list[mx.array] | None = None,
    key: mx.array | None = None,
) -> Any:
    """The call's result, and its caches changed, with nothing kept but what goes in.

    Of a module, the first argument, what is trained goes in too. Every floating array goes in as
    an argument (a captured one would lose its gradient) and every new one comes out once (MLX
    keeps one cotangent of an output that occurs twice). `key` begins the chain of dropout keys.
    """
    layer = args[0] if isinstance(args[0], nn.Module) else nn.Module()
    caches: dict[int, Any] = {}
    given: list[mx.array] = []
    frame = _mapped((args, kwargs), lambda a: _slot_of(a, given, True), caches)
    weights = tree_flatten(layer.trainable_parameters())
    names, count = [name for name, _ in weights], len(weights)
    made: dict[str, Any] = {}

    def pure(*flat: mx.array) -> list[mx.array]:
        parameters, inputs = flat[:count], list(flat[count:])
        # A key among the arguments would be differentiated, which random bits are not.
        drop = mx.stop_gradient(inputs.pop()) if key is not None else None
        clones: dict[int, Any] = {}
        own_args, own_kwargs = _mapped(frame, lambda a: _filled(a, inputs, []), clones)
        layer.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        try:
            with _keyed(chain, drop):
                result = call(*own_args, **own_kwargs)
        finally:
            layer.update(tree_unflatten(weights))
        outputs: list[mx.array] = []
        changed = [attributes(clone) for clone in clones.values()]
        slot = lambda a: _returned(a, inputs, outputs)  # noqa: E731
        made["frame"] = _mapped((result, changed), slot, {})
        return outputs

    extra = [] if key is None else [key]
    outputs = mx.checkpoint(pure)(*(v for _, v in weights), *given, *extra)
    fill = lambda a: _filled(a, given, outputs)  # noqa: E731
    result, changed = _mapped(made["frame"], fill, {})
    for cache, state in zip(_originals((args, kwargs)), changed, strict=True):
        attributes(cache).update(state)
    return result


def _mapped(value: Any, leaf: Callable[[Any], Any], caches: dict[int, Any]) -> Any:
    """A copy of nested tuples, lists, dicts and caches; arrays and slots go through `leaf`."""
    if isinstance(value, (mx.array, _Slot)):
        return leaf(value)
    if isinstance(value, tuple):
        parts = [_mapped(v, leaf, caches) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_mapped(v, leaf, caches) for v in value]
    if isinstance(value, dict) and not isinstance(value, nn.Module):
        return {k: _mapped(v, leaf, caches) for k, v in value.items()}
    if isinstance(value, (PrefixKVCache, BaseCache)):
        if id(value) not in caches:
            caches[id(value)] = clone = object.__new__(type(value))
            attributes(clone).update(_mapped(attributes(value), leaf, caches))
        return caches[id(value)]
    return value


def _originals(value: Any) -> list[Any]:
    """The caches in the order in which `_mapped` clones them."""
    caches: dict[int, Any] = {}

    def look(item: Any) -> None:
        if isinstance(item, (PrefixKVCache, BaseCache)) and id(item) not in caches:
            caches[id(item)] = item
            look(attributes(item))
        elif isinstance(item, (tuple, list)):
            for part in item:
                look(part)
        elif isinstance(item, dict) and not isinstance(item, nn.Module):
            for part in item.values():
                look(part)

    look(value)
    return list(caches.values())


def _slot_of(array: Any, arrays: list[mx.array], given: bool) -> Any:
    """The slot of a floating array, each array once; others are constants, copied.

    ArraysCache counts its lengths down in place: a second run would see others.
    """
    if not mx.issubdtype(array.dtype, mx.floating):
        return mx.array(array)
    for index, known in enumerate(arrays):
        if known is array:
            return _Slot(given, index)
    arrays.append(array)
    return _Slot(given, len(arrays) - 1)


def _returned(array: mx.array, inputs: list[mx.array], outputs: list[mx.array]) -> Any:
    """The slot of an array that a layer returns; an input passed through is not an output."""
    for index, known in enumerate(inputs):
        if known is array:
            return _Slot(True, index)
    return _slot_of(array, outputs, False)


def _filled(slot: Any, inputs: list[mx.array], outputs: list[mx.array]) -> mx.array:
    if not isinstance(slot, _Slot):
        return mx.array(slot)
    return (inputs if slot.given else outputs)[slot.index]
