"""Random adapters that move a tiny base's logits, written to a folder, and fused."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

from orpo_mlx.config.interop import FuseConfig
from orpo_mlx.interop.fuse import drift
from orpo_mlx.interop.fuse.merge import Fused, fuse
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.model.base import load_base
from tests.model.test_adapters import IDS, adapted, farthest

__all__ = ["IDS", "adapted", "farthest", "fused", "fused_logits", "logits"]


def fused(run: Path, output: Path, **settings: Any) -> Fused:
    """`fuse` without the run of whole models, unless asked; then on two or three pairs."""
    runs = settings.pop("adapter", [str(run)])
    report = settings.pop("report", lambda event: None)
    config = FuseConfig(adapter=runs, output=output, **{"verify": False} | settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "KEPT_BYTES", 300_000)
        return fuse(config, report)


def logits(base: Path, run: Path | None = None) -> mx.array:
    """Of the base, or of the base with an adapter, in float32."""
    model = load_base(str(base), keep_quantized=False).model
    if run:
        apply_adapter(model, run)
    return model(IDS)


def fused_logits(folder: Path) -> mx.array:
    """As mlx-lm's own commands load the folder; quantized layers as they are."""
    model: nn.Module
    model, _ = mlx_lm.load(str(folder))
    return model(IDS)
