"""Settings of short runs on tiny bases, and what can be seen of a run afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Callback, Event, Notice, StepDone, StopRun
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.training import loop
from orpo_mlx.training.loop import train

# Twenty steps with all that a stop could disturb.
LONG: dict[str, Any] = {"steps": 20, "dropout": 0.1, "eval_every": 7, "save_every": 5}
MACHINE = ("tokens_per_second", "peak_memory_gb")


def settings(model: Path, pairs: Path, output: Path, **changes: Any) -> TrainConfig:
    """A run of four steps of two micro-batches; other keys as given."""
    values: dict[str, Any] = {
        "model": str(model), "data": [str(pairs)], "output": output, "steps": 4, "batch_size": 4,
        "micro_batch_size": 2, "learning_rate": 5e-3, "warmup": 0.2, "rank": 4, "alpha": 8.0,
        "max_seq_length": 128, "eval_every": 0, "save_every": 0, "template_date": "2026-01-02",
        "valid_fraction": 0,
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def train_by_rule_1(config: TrainConfig, *callbacks: Callback) -> None:
    """A run as version 0.1 began it: by its rule, of which config.yaml says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "RULES", 1)
        train(config, callbacks)
    file = config.output / CONFIG
    values = yaml.safe_load(file.read_text())
    assert values.pop("rules") == 1
    file.write_text(yaml.safe_dump(values, sort_keys=False))


def stop_after(step: int) -> Callable[[Event], None]:
    """A callback that ends the run once `step` steps are done."""

    def callback(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            raise StopRun

    return callback


def notices(events: list[Event], *, warning: bool | None = None) -> list[str]:
    """The sentences among events."""
    selected = [e for e in events if isinstance(e, Notice)]
    return [e.text for e in selected if warning is None or e.warning == warning]


def rows(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in MACHINE} for x in lines]


def curve(output: Path, name: str = "loss") -> list[float]:
    """A column of metrics.jsonl, where it is given."""
    return [row[name] for row in rows(output) if name in row]


def tensors(output: Path) -> dict[str, bytes]:
    """Every tensor of a run, checkpoints included, bit for bit, by file and name."""
    return {
        f"{file.relative_to(output)}:{name}": bytes(value)
        for file in sorted(output.rglob("*.safetensors"))
        for name, value in mx.load(str(file)).items()
    }
