"""Layers whose body a test chooses, and a tiny model with LoRA on all linear layers."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model import lora
from tests import tiny

SIZE = 4


class Layer(nn.Module):
    """What the tests below vary: `body(layer, x, *args, **kwargs)`."""

    def __init__(self, body: Callable[..., Any]):
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)
        self._body = body

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        return self._body(self, x, *args, **kwargs)


class Toy(nn.Module):
    def __init__(self, body: Callable[..., Any], count: int = 2):
        super().__init__()
        mx.random.seed(0)
        self.layers = [Layer(body) for _ in range(count)]


def states(rows: int = 1, length: int = 3) -> mx.array:
    return mx.random.normal((rows, length, SIZE), key=mx.random.key(1))


def adapted(family: str = "llama", dropout: float = 0.0, **changes: Any) -> nn.Module:
    model, _ = tiny.build_model(family, **changes)
    lora.attach(
        model,
        lora.find_targets(model, ["all-linear"], -1),
        kind="lora",
        rank=4,
        scale=2.0,
        dropout=dropout,
        bits={},
    )
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    return model.train()


def logits_loss(model: nn.Module) -> mx.array:
    return (model(mx.arange(1, 9)[None]) ** 2).mean()
