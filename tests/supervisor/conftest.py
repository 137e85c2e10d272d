"""Runs whose children follow a script: what the supervisor does is seen without mlx."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Event, Finished, Saved, Started, StepDone
from orpo_mlx.supervisor.event_lines import Failure, Message, Result
from orpo_mlx.supervisor.supervise import RunEnd, supervise
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import LONG, settings

CHILD = Path(__file__).parent / "scripted_child.py"
Action = tuple[str, Any]


def send(message: Message) -> Action:
    values = {"message": type(message).__name__, **asdict(message)}
    return "send", json.loads(json.dumps(values, default=str))


def steps(first: int, last: int, *, peak_gb: float = 0.0) -> list[Action]:
    return [send(StepDone(n, {"loss": 1.0, "peak_memory_gb": peak_gb})) for n in range(first, last)]


def started(step: int, micro_batch_size: int = 4) -> Action:
    return send(Started(step, 10, 1, 2, micro_batch_size))


def saved(step: int, output: Path) -> list[Action]:
    """A checkpoint, and the config.yaml that a run writes before its first."""
    return [("write", str(output / "config.yaml")), send(Saved(step, output / "checkpoints"))]


def done(
    output: Path, *, step: int = 10, stopped: bool = False, segment: bool = False
) -> list[Action]:
    facts = {"output": str(output), "step": step, "stopped": stopped}
    end = [send(Finished(step, stopped, output)), send(Result(facts, stopped, segment))]
    return [*end, ("exit", 130 if stopped else 0)]


def failed(text: str, status: int) -> list[Action]:
    return [send(Failure(text)), ("exit", status)]


class Supervised(NamedTuple):
    """A supervised run: how it ended, what was reported, what each child was handed over."""

    outcome: RunEnd | BaseException
    events: list[Event]
    settings: list[dict[str, Any]]


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[..., Supervised]:
    """Supervises children that live as scripted; the run folder is `tmp_path / "run"`."""

    def run(*lives: list[Action], callback: Any = None, **changes: Any) -> Supervised:
        script = tmp_path / "script"
        script.mkdir(exist_ok=True)
        (script / "lives.json").write_text(json.dumps(lives))
        events: list[Event] = []
        callbacks = [events.append, *([callback] if callback else [])]
        command = [sys.executable, "-S", str(CHILD), str(script)]
        outcome: RunEnd | BaseException
        try:
            outcome = supervise(run_config(tmp_path, **changes), callbacks, command=command)
        except (Exception, KeyboardInterrupt) as error:
            outcome = error
        files = sorted(script.glob("settings-*.json"))
        return Supervised(outcome, events, [json.loads(file.read_text()) for file in files])

    return run


def run_config(folder: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"model": "base", "data": ["pairs.jsonl"], "output": folder / "run"}
    return TrainConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs to train on and, next to them, five held-out ones. Do not write there."""
    return tiny.save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps with dropout, in one go and in this process. Do not write there."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(settings(llama, data, output, **LONG))
    return output
