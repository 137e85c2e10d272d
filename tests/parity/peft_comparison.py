"""An adapter on both sides: mlx-lm's logits, and those of transformers with PEFT."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import numpy as np

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.interop.checkpoint.module_map import map_modules
from orpo_mlx.interop.peft.exporter import PROVEN, export_peft
from orpo_mlx.model import lora
from orpo_mlx.model.base import load_weights
from tests import families as tiny_families
from tests.parity import peft_bases as bases

# float32, logits of size 5: sums of some hundred terms in another order. mlx-lm's own GELU is
# another in starcoder2; recurrent ones, and granite's scales, sum more.
TOLERANCE = 2e-5
TOLERANCES = {
    "starcoder2": 5e-3,
    "qwen3_5": 2e-4,
    "qwen3_next": 2e-4,
    "granite": 1e-4,
    "granitemoe": 1e-4,
}
MOVED = 0.1  # what an adapter changes at least, or nothing was compared


class Comparison(NamedTuple):
    """The greatest differences over all logits."""

    moved: float  # by the adapter
    apart: float  # of the two frameworks, adapter in place
    tolerance: float
    unexpected: list[str]  # keys that PEFT found no place for

    @property
    def right(self) -> bool:
        return self.apart < self.tolerance and self.moved > MOVED and not self.unexpected


def every_module(model: nn.Module) -> list[str]:
    """What an adapter can be put on: linear layers, routers, embedding and head."""
    routers = {name for block in model.layers for name in lora.find_routers(block)}
    outside = {
        path.rpartition(".")[2]
        for path, m in model.named_modules()
        if ".layers." not in path and lora.is_adaptable(m)
    }
    return [lora.ALL_LINEAR, *sorted(routers), *sorted(outside)]


def compared(
    family: str,
    folder: Path,
    *,
    targets: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    **adapter: Any,
) -> Comparison:
    """Export a random adapter of a random model to `folder`/peft, and compare."""
    theirs = bases.build_theirs(family, folder / "base", **(changes or {}))
    before = bases.their_logits(theirs)
    if targets is None:
        targets = every_module(load_weights(folder / "base", family)[0])
    model = bases.random_adapter(folder / "base", folder / "adapter", targets, **adapter)
    export_peft(ExportConfig(adapter=folder / "adapter", to="peft", output=folder / "peft"))
    ours = bases.our_logits(model)
    with_peft, unexpected = load_peft(theirs, folder / "peft")
    return Comparison(
        moved=float(np.abs(ours - before).max()),
        apart=float(np.abs(ours - bases.their_logits(with_peft)).max()),
        tolerance=TOLERANCES.get(family, TOLERANCE),
        unexpected=unexpected,
    )


def load_peft(model: Any, folder: Path) -> tuple[Any, list[str]]:
    """A model of transformers with an adapter, and the keys that PEFT has no place for."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(folder))
    wrapped = PeftModel(model, config)
    keys = wrapped.load_adapter(str(folder), "default")
    lacking = [key for key in keys.missing_keys if "lora" in key]
    return wrapped.eval(), [*keys.unexpected_keys, *lacking]


class Outcome(NamedTuple):
    """A row of docs/interop.md: what became of one family."""

    family: str
    word: str  # exact, in part, not compared
    modules: str  # what was compared, or what is refused
    why: str


def outcome(family: str, folder: Path) -> Outcome:
    """What the comparison of a family found, or what is refused without one."""
    if family in PROVEN:
        result = compared(family, folder)
        assert result.right, f"{family}: {result}"
        written = json.loads((folder / "peft" / "adapter_config.json").read_text())
        names = [*written["target_modules"], *(written["target_parameters"] or [])]
        leaves = {name.removesuffix(".weight").rpartition(".")[2] for name in names}
        return Outcome(family, "exact", ", ".join(sorted(leaves)), "")
    config = {"model_type": family, **tiny_families.COMMON, **tiny_families.FAMILIES[family]}
    module_map = map_modules(config, None)
    refused = sorted({path.rpartition(".")[2] for path in module_map.refused})
    reasons = sorted({re.sub(r"\d+", "N", why) for why in module_map.refused.values()})
    word = "in part, not compared" if refused else "not compared"
    return Outcome(
        family, word, f"refused: {', '.join(refused)}" if refused else "", "; ".join(reasons)
    )
