"""Hooks on the blocks of a live model: their calls are replaced for a while, or left out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from orpo_mlx.model.mlx_lm_api import calls_replaced

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
