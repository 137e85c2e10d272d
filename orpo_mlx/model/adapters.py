"""The adapter folder on disk, in mlx-lm's layout: adapters.safetensors and adapter_config.json.

Ours, those of `mlx_lm.lora` and those of mlx-lm-lora; each is checked before it is used.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import load_json_object, mlx_writes, replacing
from orpo_mlx.model.adapter_checks import (
    ADAPTER_LEAVES,
    header_problems,
    leaf_of,
    read_settings,
)
from orpo_mlx.model.base import find_model
from orpo_mlx.model.layer_hooks import base_layer
from orpo_mlx.model.mlx_lm_api import linear_to_lora_layers
from orpo_mlx.model.safetensors import read_header

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"


class Adapter(NamedTuple):
    """An adapter as its folder holds it; whether it fits a model is checked when it is applied."""

    folder: Path
    weights: dict[str, mx.array]  # by parameter name
    config: dict[str, Any]  # adapter_config.json as it is
    kind: str  # "full": `weights` are the model's own, trained
    rank: int
    scale: float
    keys: list[str] | None
    num_layers: int

    @property
    def modules(self) -> list[str]:
        """The paths of the modules that it changes."""
        return sorted({name.rsplit(".", 1)[0] for name in self.weights})


def save_adapter(folder: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> None:
    """Write the two files, each complete or not at all; `weights` by parameter name."""
    with replacing(folder / WEIGHTS) as file:
        save_tensors(file, weights)
    with replacing(folder / CONFIG) as file:
        file.write_text(json.dumps(config, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def save_tensors(file: Path, tensors: dict[str, mx.array], *, layout: str = "mlx") -> None:
    """Write a safetensors file; raises OSError, also for mlx's own error for a full disk."""
    with mlx_writes(file):
        mx.save_safetensors(str(file), tensors, metadata={"format": layout})


def load_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config; raises OrpoError if the folder holds no adapter in mlx-lm's layout."""
    if not folder.exists():
        raise OrpoError(f"Adapter {folder}: no such folder (from {Path.cwd()}).")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OrpoError(
                f"Adapter {folder}: no {name} there: not an adapter folder.{_hint(folder)}"
            )
    return load_json_object(folder / CONFIG, f"Adapter {folder}: {CONFIG}")


def named_base(adapter: Adapter, model: str | None, revision: str | None) -> tuple[str, str | None]:
    """The base that the user named, else the adapter's own, and its revision; raises OrpoError."""
    if model:
        return model, revision
    name = adapter.config.get("model")
    if not isinstance(name, str) or not name:
        raise OrpoError(
            f"Adapter {adapter.folder} does not name the base that it was trained on. "
            "Give it with --model BASE."
        )
    return name, revision or adapter.config.get("revision")


def find_base(
    adapter: Adapter, model: str | None, revision: str | None, *, weights: bool = True
) -> tuple[str, str | None, Path]:
    """`named_base` and its folder, as base.find_model finds it; raises OrpoError."""
    name, revision = named_base(adapter, model, revision)
    flag = "--model" if model else f"Adapter {adapter.folder} was trained on"
    try:
        return name, revision, find_model(name, revision=revision, weights=weights, flag=flag)
    except OrpoError as error:
        if model:
            raise
        raise OrpoError(f"{error} Give its base with --model BASE.") from None


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder.

    Raises OrpoError, with every problem, unless the tensors are those that the config
    promises, with shapes that fit each other and finite values.
    """
    config = load_adapter_config(folder)
    header = read_header(folder / WEIGHTS)
    settings, problems = read_settings(config, header)
    if problems:
        raise collected(f"Adapter {folder}: {CONFIG} is damaged:", problems)
    problems = header_problems(header, settings)
    if problems:
        raise collected(f"Adapter {folder}: {WEIGHTS} does not match {CONFIG}:", problems)
    weights = _load(folder / WEIGHTS)
    if wrong := [name for name, value in weights.items() if not _finite(value)]:
        raise collected(f"Adapter {folder}: {WEIGHTS} has NaN or infinite values:", wrong)
    return Adapter(folder, weights, config, *settings)


def apply_adapter(model: nn.Module, folder: Path) -> None:
    """Put the adapter of a folder onto a base, in evaluation mode.

    Raises OrpoError if it was made for another model: names or shapes that do not fit, or
    tensors that are missing.
    """
    put_onto(model, read_adapter(folder))


def put_onto(model: nn.Module, adapter: Adapter) -> None:
    """Put an adapter that was read onto a base, in evaluation mode; raises as `apply_adapter`."""
    foreign = foreign_heading(adapter)
    if adapter.num_layers > len(model.layers):
        raise OrpoError(
            f"{foreign}: it adapts {adapter.num_layers} blocks, the model has {len(model.layers)}."
        )
    if adapter.kind != "full":
        parameters = {
            "rank": adapter.rank,
            "scale": adapter.scale,
            "dropout": 0.0,
            "keys": adapter.keys,
        }
        try:
            linear_to_lora_layers(
                model, adapter.num_layers, parameters, use_dora=adapter.kind == "dora"
            )
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise OrpoError(f"{foreign}: {error}") from None
    problems = _misfits(dict(tree_flatten(model.parameters())), adapter)
    if problems:
        raise collected(f"{foreign}:", problems)
    model.load_weights(list(adapter.weights.items()), strict=False)
    model.eval()


class AdapterSwitch:
    """An adapter that is put onto a base, and can be taken off and put on again.

    Off, the model runs the base's own layers on the base's own arrays: its logits are the base's,
    bit for bit. Both need the memory of one base and one adapter.
    """

    def __init__(self, model: nn.Module, adapter: Adapter):
        parameters = dict(tree_flatten(model.parameters())) if adapter.kind == "full" else {}
        put_onto(model, adapter)
        self._model = model
        self._weights = adapter.weights if parameters else {}
        self._base_weights = {name: parameters[name] for name in self._weights}
        self._layers = [(path, m) for path, m in model.named_modules() if "lora_a" in m]

    def set(self, on: bool) -> None:
        """Let the model answer with its adapter, or without."""
        layers = [(path, layer if on else base_layer(layer)) for path, layer in self._layers]
        self._model.update_modules(tree_unflatten(layers))
        weights = self._weights if on else self._base_weights
        self._model.load_weights(list(weights.items()), strict=False)


def start_from(model: nn.Module, adapter: Adapter) -> None:
    """Give the adapter layers of a model that is to be trained an adapter's values.

    Raises OrpoError if they are not the same layers, of the same shapes.
    """
    parameters = dict(tree_flatten(model.parameters()))
    if problems := _misfits(parameters, adapter):
        raise collected(f"{foreign_heading(adapter)}:", problems)
    values = [(n, v.astype(parameters[n].dtype)) for n, v in adapter.weights.items()]
    model.load_weights(values, strict=False)


def foreign_heading(adapter: Adapter) -> str:
    """How a message about an adapter that is not this model's begins."""
    made_for = f" (made for {adapter.config['model']})" if adapter.config.get("model") else ""
    return f"Adapter {adapter.folder}{made_for} does not fit this model"


def _misfits(parameters: dict[str, mx.array], adapter: Adapter) -> list[str]:
    """Tensors of the adapter that the model has no parameter for, and parameters left without."""
    full = adapter.kind == "full"
    allowed = {n: v for n, v in parameters.items() if full or leaf_of(n) in ADAPTER_LEAVES}
    problems = []
    for name, value in sorted(adapter.weights.items()):
        if name not in allowed:
            problems.append(f"{name}: not an adapter parameter in the model")
        elif value.shape != allowed[name].shape:
            problems.append(
                f"{name}: adapter shape {value.shape} does not match "
                f"model parameter shape {allowed[name].shape}"
            )
    missing = [] if full else sorted(allowed.keys() - adapter.weights.keys())
    if missing and not problems:
        problems.append(f"{WEIGHTS} lacks {len(missing)} tensors ({missing[0]})")
    return problems


def _load(file: Path) -> dict[str, mx.array]:
    """The tensors of a file whose header was checked."""
    try:
        weights: Any = mx.load(str(file))
        mx.eval(weights)
    except (RuntimeError, ValueError, TypeError) as error:
        raise OrpoError(f"{file} cannot be read: {error}") from None
    return weights


def _finite(value: mx.array) -> bool:
    return bool(mx.isfinite(value).all().item())


def _hint(folder: Path) -> str:
    """What else a folder without an adapter may hold."""
    if (folder / "adapter_model.safetensors").is_file():
        return " It is PEFT's layout: import it with orpo-mlx import."
    if numbered := sorted(p.name for p in folder.glob("*_adapters.safetensors")):
        return f" Copy the checkpoint that you want ({', '.join(numbered[-3:])}) to that name."
    return ""
