"""Calls of a live model's layers go through another function for a while, then as before."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.grad_checkpoint import training_layers
from orpo_mlx.model.layer_hooks import block_calls
from tests.model.toy_layers import Layer, Toy, adapted, logits_loss, states


def test_a_class_that_inherits_its_call_inherits_it_again() -> None:
    class Heir(Layer):
        pass

    model = Toy(lambda layer, x: layer.linear(x))
    model.layers = [Heir(lambda layer, x: layer.linear(x)), *model.layers]
    with training_layers(model, checkpoint=True):
        assert "__call__" in vars(Heir)
    assert "__call__" not in vars(Heir)
    assert Heir.__call__ is Layer.__call__


def test_an_inherited_call_is_replaced_once() -> None:
    body = lambda layer, x: layer.linear(x) + x  # noqa: E731
    kinds = [Layer]
    for number in range(5):  # each of the one before; in which order they are replaced is open
        kinds.append(type(f"Heir{number}", (kinds[-1],), {}))
    model = Toy(body)
    model.layers = [kind(body) for kind in kinds]
    seen = []

    def around(layer: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        seen.append(layer)
        return call(layer, *args, **kwargs)

    x = states()
    with block_calls(model, around):
        for layer in model.layers:
            x = layer(x)
    assert [id(layer) for layer in seen] == [id(layer) for layer in model.layers]


def test_another_model_of_the_same_class_runs_as_ever() -> None:
    model, other = adapted(), adapted()
    seen = []

    def around(layer: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        seen.append(layer)
        return call(layer, *args, **kwargs)

    with block_calls(model, around):
        mx.eval(logits_loss(other))
        assert not seen
        mx.eval(logits_loss(model))
    assert len(seen) == len(model.layers)
