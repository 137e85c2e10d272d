"""PEFT folders with other settings or tensors than ours, and `import` of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from orpo_mlx.config.interop import ImportConfig
from orpo_mlx.interop.peft.importer import import_peft

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def damaged(
    peft: Path,
    folder: Path,
    config: dict[str, Any] | None = None,
    tensors: Callable[[dict[str, mx.array]], Any] = lambda t: None,
) -> Path:
    """A copy with other settings, or tensors that were changed."""
    shutil.copytree(peft, folder)
    written = json.loads((peft / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(written | (config or {})))
    loaded: Any = mx.load(str(peft / WEIGHTS))
    tensors(loaded)
    mx.save_safetensors(str(folder / WEIGHTS), loaded)
    return folder


def bring(source: Path, model: Path, output: Path) -> None:
    import_peft(ImportConfig(adapter=str(source), model=str(model), output=output))
