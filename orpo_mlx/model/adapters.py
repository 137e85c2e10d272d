"""The adapter folder on disk, in mlx-lm's layout: adapters.safetensors and adapter_config.json."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import replacing

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
ADAPTER_LEAVES = ("lora_a", "lora_b", "m")


def save_adapter(folder: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """Write the two files, each whole or not at all; `weights` by parameter name."""
    with replacing(folder / WEIGHTS) as file:
        save_tensors(file, weights)
    with replacing(folder / CONFIG) as file:
        file.write_text(json.dumps(config, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def save_tensors(file: Path, tensors: dict[str, mx.array]) -> None:
    """Write a safetensors file; raises OSError, also where mlx has its own word for a full disk."""
    try:
        mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
    except RuntimeError as error:
        raise OSError(str(error)) from error


def load_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config; raises OrpoError if the folder holds no adapter in mlx-lm's layout."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OrpoError(f"--adapter {folder}: no {name} there: not an adapter folder.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        layers = config["num_layers"]
        if not isinstance(config, dict) or not isinstance(layers, int):
            raise ValueError(f"num_layers {layers}")
    except (ValueError, KeyError, TypeError) as error:
        raise OrpoError(f"--adapter {folder}: {CONFIG} is damaged ({error}).") from None
    return config


def apply_adapter(model: nn.Module, folder: Path) -> None:
    """Put the adapter of a folder onto a base, in evaluation mode.

    Raises OrpoError if it was made for another model: names or shapes that do not fit, or
    tensors that are missing.
    """
    config = load_adapter_config(folder)
    made_for = f" (made for {config['model']})" if config.get("model") else ""
    foreign = f"--adapter {folder}{made_for} does not fit this model"
    if config["num_layers"] > len(model.layers):
        raise OrpoError(
            f"{foreign}: it adapts {config['num_layers']} blocks, "
            f"the model has {len(model.layers)}."
        )
    try:
        load_adapters(model, str(folder))
        stored = set(mx.load(str(folder / WEIGHTS)))
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        heading, *lines = str(error).strip().split("\n")
        raise collected(
            f"{foreign}:", sorted(line.strip() for line in lines) or [heading]
        ) from None
    if config.get("fine_tune_type") != "full":
        wanted = {name for name, _ in tree_flatten(model.parameters())
                  if name.rsplit(".", 1)[-1] in ADAPTER_LEAVES}  # fmt: skip
        if missing := sorted(wanted - stored):
            raise OrpoError(f"{foreign}: {WEIGHTS} lacks {len(missing)} tensors ({missing[0]}).")
    model.eval()
