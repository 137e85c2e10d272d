"""Run folders written by hand, as a run writes them: no model, no training."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.run_folder.folder import METRICS
from orpo_mlx.run_folder.settings import save_run_config


def row(step: int, loss: float, *, held_out: bool = False) -> dict[str, float]:
    """A row of metrics.jsonl; accuracy is 1 / loss, margin half of that."""
    values = {
        "loss": loss,
        "nll_loss": loss,
        "rewards/accuracies": 1 / loss,
        "rewards/margins": 0.5 / loss,
        "logps/chosen": -loss,
        "logps/rejected": -2 * loss,
    }
    if held_out:
        return {"step": step, **{f"eval_{name}": value for name, value in values.items()}}
    return {"step": step, **values, "tokens_per_second": 1e3, "peak_memory_gb": 1.0}


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, float]] = (),
    checkpoints: Sequence[int] = (),
    **settings: Any,
) -> Path:
    """A run folder with these metrics and checkpoints of 1,000 bytes each."""
    folder.mkdir(parents=True)
    values = {"model": "org/base", "data": ["pairs.jsonl"], "output": folder, "steps": 20}
    config = TrainConfig.model_validate(values | settings)
    save_run_config(config, dt.date(2026, 1, 2), False, rules=3)
    (folder / METRICS).write_text("".join(json.dumps(r) + "\n" for r in rows))
    for step in checkpoints:
        checkpoint = folder / "checkpoints" / f"step-{step:07d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights.safetensors").write_bytes(b"x" * 1000)
    return folder


# Of 20 steps with validations at 0, 10 and 20, of which that at 10 is the best.
ROWS = [
    row(0, 4.0, held_out=True),
    *(row(step, 4.0 - step / 10) for step in range(1, 11)),
    row(10, 2.5, held_out=True),
    *(row(step, 4.0 - step / 10) for step in range(11, 21)),
    row(20, 3.125, held_out=True),
]
