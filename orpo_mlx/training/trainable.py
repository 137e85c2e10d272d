"""What a run trains: an adapter, new or one to start from, or the weights of blocks."""

import re
from typing import Any

import mlx.core as mx

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.model import lora
from orpo_mlx.model.adapters import read_adapter, start_from
from orpo_mlx.model.base import Base

ADAPTER_OPTIONS = ("rank", "alpha", "rslora", "dropout", "target_modules")


def make_trainable(base: Base, config: TrainConfig, report: Callback) -> dict[str, Any]:
    """Prepare the base for training from the run's seed; return mlx-lm's adapter config.

    Raises OrpoError for settings that this base cannot be trained with.
    """
    mx.random.seed(config.seed)
    if config.fine_tune_type == "full":
        adapter = _unfreeze(base, config, report)
    else:
        targets = lora.find_targets(base.model, config.target_modules, config.num_layers)
        if targets.routers:
            report(
                Notice(
                    f"{', '.join(targets.routers)}: these route tokens to experts; training them "
                    "often unbalances a mixture of experts.",
                    warning=True,
                )
            )
        adapter = lora.attach(
            base.model,
            targets,
            kind=config.fine_tune_type,
            rank=config.rank,
            scale=config.scale,
            dropout=config.dropout,
            bits=base.bits,
        )
        kept = adapter["lora_parameters"]["keys"]
        if left_out := [key for key in targets.keys if key not in kept]:
            report(
                Notice(
                    f"{', '.join(left_out)}: without an adapter, since the model's own code uses "
                    "the weights there directly."
                )
            )
        if config.adapter and not config.resume:
            start_from(base.model, read_adapter(config.adapter))
    base.model.train()
    return {**adapter, "model": config.model, "revision": config.revision}


def settings_of_adapter(config: TrainConfig) -> TrainConfig:
    """The settings, with those that the adapter to start from determines.

    Raises OrpoError for any that were given differently, and for weights of a full fine-tune.
    """
    assert config.adapter
    adapter = read_adapter(config.adapter)
    if adapter.kind == "full":
        raise OrpoError(
            f"--adapter {config.adapter} holds weights of the base itself: train on its folder "
            f"{config.adapter / 'model'} as --model, or fuse it first."
        )
    fixed = {
        "fine_tune_type": adapter.kind,
        "rank": adapter.rank,
        "alpha": lora.alpha_for(adapter.scale, adapter.rank),
        "rslora": False,
        "num_layers": adapter.num_layers,
        "target_modules": adapter.keys or _names_in_blocks(adapter.modules),
    }
    given = config.model_fields_set & fixed.keys()
    clashes = [
        f"--{name.replace('_', '-')} {_written(getattr(config, name))}: it has "
        f"{_written(fixed[name])}"
        for name in sorted(given)
        if getattr(config, name) != fixed[name]
    ]
    if clashes:
        heading = f"--adapter {config.adapter} has its own settings. Leave these out:"
        raise collected(heading, clashes)
    return config.model_copy(update=fixed)


def _written(value: Any) -> str:
    """A value of an option as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) if isinstance(value, list) else str(value)


def _names_in_blocks(paths: list[str]) -> list[str]:
    return sorted({re.sub(r"^.*?\.\d+\.", "", path) for path in paths})


def _unfreeze(base: Base, config: TrainConfig, report: Callback) -> dict[str, Any]:
    if base.bits:
        raise OrpoError(
            f"--fine-tune-type full needs an unquantized base, {config.model} is quantized. "
            "Use --fine-tune-type lora, or an unquantized model."
        )
    fields = TrainConfig.model_fields
    idle = [n for n in ADAPTER_OPTIONS if getattr(config, n) != fields[n].default]
    if idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        report(Notice(f"--fine-tune-type full does not use {flags}.", warning=True))
    return lora.unfreeze_blocks(base.model, config.num_layers)
