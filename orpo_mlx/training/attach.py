"""What a run trains: an adapter on the modules that its settings name, or whole blocks."""

from typing import Any

import mlx.core as mx

from orpo_mlx.config import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.model import lora
from orpo_mlx.model.base import Base
from orpo_mlx.training.metrics import Callback, Notice

ADAPTER_OPTIONS = ("rank", "alpha", "rslora", "dropout", "target_modules")


def attach(base: Base, config: TrainConfig, tell: Callback) -> dict[str, Any]:
    """Make the base ready to be trained from the run's seed; return mlx-lm's adapter config.

    Raises OrpoError for settings that this base cannot be trained with.
    """
    mx.random.seed(config.seed)
    if config.fine_tune_type == "full":
        adapter = _unfreeze(base, config, tell)
    else:
        targets = lora.find_targets(base.model, config.target_modules, config.num_layers)
        if targets.routers:
            tell(Notice(
                f"{', '.join(targets.routers)}: these route tokens to experts; training them "
                "often unbalances a mixture of experts.", warning=True,
            ))  # fmt: skip
        adapter = lora.attach(
            base.model, targets, kind=config.fine_tune_type, rank=config.rank,
            scale=config.scale, dropout=config.dropout, bits=base.bits,
        )  # fmt: skip
    base.model.train()
    return {**adapter, "model": config.model, "revision": config.revision}


def _unfreeze(base: Base, config: TrainConfig, tell: Callback) -> dict[str, Any]:
    if base.bits:
        raise OrpoError(
            f"--fine-tune-type full needs an unquantized base, {config.model} is quantized. "
            "Use --fine-tune-type lora, or an unquantized model."
        )
    fields = TrainConfig.model_fields
    idle = [n for n in ADAPTER_OPTIONS if getattr(config, n) != fields[n].default]
    if idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        tell(Notice(f"--fine-tune-type full makes no use of {flags}.", warning=True))
    return lora.unfreeze_blocks(base.model, config.num_layers)
