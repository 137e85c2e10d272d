"""A tiny base, and adapters of it that move it by so much."""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.model import lora
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import load_base
from tests import tiny

PARAGRAPHS = (
    "the router is lost",
    "please restart my phone first, then check the bill and the refund of order number 12",
    "def later(light):\n    return light + 12",
    "sorry: 3 * 4 = 12, and 12 + 30 = 42",
)


def save_two(folder: Path, strength: float) -> tuple[Path, Path]:
    """A base and its adapter, whose weights are random numbers of this size."""
    base = tiny.save_base(folder / "base")
    return base, save_noise(base, folder / "adapter", strength)


def save_noise(base: Path, output: Path, strength: float) -> Path:
    """An adapter of a base; with a strength of 0 it changes nothing."""
    model = load_base(str(base)).model
    targets = lora.find_targets(model, ["all-linear", "embed_tokens"], 2)
    config = lora.attach(model, targets, kind="lora", rank=4, scale=3.0, dropout=0.1, bits=None)
    mx.random.seed(1)
    weights = dict(
        tree_flatten(
            tree_map(lambda v: strength * mx.random.normal(v.shape), model.trainable_parameters())
        )
    )
    output.mkdir()
    save_adapter(output, weights, config | {"model": str(base), "revision": None})
    return output
