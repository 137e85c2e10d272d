"""Layers whose weights a model's own code uses directly: no adapter, or an error where named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.model import lora
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import notices, settings

SIZE = 64


class Block(nn.Module):
    def __init__(self, use: Callable[["Block", mx.array], mx.array]):
        super().__init__()
        self.called = nn.Linear(SIZE, SIZE, bias=False)
        self.odd = nn.Linear(SIZE, SIZE, bias=False)
        self._use = use

    def __call__(self, x: mx.array) -> mx.array:
        return x + mx.tanh(self._use(self, self.called(x)))


class Model(nn.Module):
    """Two blocks, each with a layer that it calls and one that it uses in an odd way."""

    def __init__(self, use: Callable[[Block, mx.array], mx.array], *, tied: bool = False):
        super().__init__()
        self.embed = nn.Embedding(32, SIZE)
        self.layers = [Block(use) for _ in range(2)]
        self._tied = tied

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x @ self.embed.weight.T if self._tied else self.embed.as_linear(x)


def weight_of(layer: nn.Module) -> mx.array:
    """A layer's weight, read by whatever bits it has, as models do that are quantized."""
    if "scales" not in layer:
        return layer.weight
    return mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=SIZE, bits=layer.bits)


def sets_the_weight(block: Block, x: mx.array) -> mx.array:
    block.odd.weight = block.odd.weight + 0
    return block.odd(x)


def calls_what_it_kept(block: Block, x: mx.array) -> mx.array:
    if not hasattr(block, "_kept"):
        odd = getattr(block.odd, "linear", block.odd)
        object.__setattr__(block, "_kept", lambda x: odd(x))
    return block._kept(x)


def asks_for_the_type(block: Block, x: mx.array) -> mx.array:
    return block.odd(x.astype(block.odd.weight.dtype))


USES: dict[str, Callable[[Block, mx.array], mx.array]] = {
    "attribute": lambda block, x: x @ block.odd.weight.T,
    "item": lambda block, x: x @ block.odd["weight"].T,
    "type": asks_for_the_type,
    "set": sets_the_weight,
    "kept": calls_what_it_kept,
}
QUANTIZED: dict[str, Callable[[Block, mx.array], mx.array]] = {
    "weight": lambda block, x: x @ weight_of(block.odd).T,
    "scales": lambda block, x: block.odd(x) * (block.odd.scales.size > 0),
    "bits": lambda block, x: block.odd(x) * (block.odd.bits == 4),
    "kept": calls_what_it_kept,
}


def attach(model: nn.Module, names: list[str], kind: str = "lora") -> list[str]:
    """Adapt the targets; the keys that were adapted."""
    targets = lora.find_targets(model, names, -1)
    how: dict[str, Any] = {"rank": 2, "scale": 2.0, "dropout": 0.0, "bits": {}}
    return lora.attach(model, targets, kind=kind, **how)["lora_parameters"]["keys"]


def assert_every_adapter_learns(model: nn.Module, ids: mx.array) -> None:
    """With a B other than 0, every adapter has a gradient."""
    trained = dict(tree_flatten(model.trainable_parameters()))
    model.update(tree_unflatten([(name, value + 0.01) for name, value in trained.items()]))
    gradients = nn.value_and_grad(model, lambda ids: (model(ids) ** 2).sum())(ids)[1]
    assert {n for n, g in tree_flatten(gradients) if mx.abs(g).max().item() > 0} == set(trained)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("use", USES)
def test_all_linear_leaves_out_what_the_model_uses_directly(use: str, kind: str) -> None:
    mx.random.seed(0)
    model, ids = Model(USES[use]), mx.arange(6)[None]
    before = model(ids) if use != "kept" else None
    assert attach(model, ["all-linear"], kind) == ["called"]
    assert [type(block.odd) for block in model.layers] == [nn.Linear] * 2
    if before is not None:
        assert mx.abs(model(ids) - before).max().item() < 1e-5
    assert_every_adapter_learns(model, ids)


@pytest.mark.parametrize("use", QUANTIZED)
def test_the_same_of_a_quantized_layer(use: str) -> None:
    mx.random.seed(0)
    model = Model(QUANTIZED[use])
    nn.quantize(model, group_size=SIZE, bits=4)
    assert attach(model, ["all-linear"]) == ["called"]
    assert [type(block.odd) for block in model.layers] == [nn.QuantizedLinear] * 2
    assert_every_adapter_learns(model, mx.arange(6)[None])


@pytest.mark.parametrize("names", [["odd"], ["all-linear", "odd"], ["called", "odd"]])
def test_a_layer_that_was_named_is_refused_with_the_reason(names: list[str]) -> None:
    with pytest.raises(OrpoError) as caught:
        attach(Model(USES["attribute"]), names)
    assert str(caught.value) == (
        "--target-modules: odd cannot have an adapter. The model's own code uses the weights "
        "there directly instead of only calling the layer, so an adapter would have no effect. "
        "Leave them out."
    )


def test_an_embedding_is_refused_where_the_head_reads_its_weights() -> None:
    with pytest.raises(OrpoError, match="--target-modules: embed cannot have an adapter"):
        attach(Model(lambda block, x: block.odd(x), tied=True), ["embed"])
    keys = attach(Model(lambda block, x: block.odd(x)), ["embed", "all-linear"])
    assert keys == ["called", "embed", "odd"]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3", "gemma3_text", "dbrx"])
def test_a_layer_that_is_called_keeps_its_adapter(family: str) -> None:
    model, _ = tiny.build_model(family)
    keys = lora.find_targets(model, ["all-linear"], -1).keys
    assert attach(model, ["all-linear"]) == keys


@pytest.mark.parametrize("bits", [None, 4])
def test_gemma3n_trains_with_default_flags(tmp_path: Path, bits: int | None) -> None:
    base = tiny.save_base(tmp_path / "base", "gemma3n", bits=bits)
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    events: list[Event] = []
    train(settings(base, pairs, tmp_path / "run", steps=2), [events.append])
    (text,) = [text for text in notices(events) if "without an adapter" in text]
    assert text == (
        "altup.correction_coefs, altup.prediction_coefs: without an adapter, since the model's "
        "own code uses the weights there directly."
    )
    names = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    assert {name.split(".altup.")[1] for name in names if ".altup." in name} == {
        "modality_router.lora_a",
        "modality_router.lora_b",
    }
