"""The command line as a person meets it: status, standard output, standard error."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from orpo_mlx.cli.main import run
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.training.loop import train
from tests import tiny


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for what is shown: no line comes or goes because the machine is busy."""
    stopped = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=lambda: 0.0)
    for module in ("progress", "doctor"):
        monkeypatch.setattr(f"orpo_mlx.cli.{module}.time", stopped)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs `orpo-mlx ARGUMENTS` in an empty folder, as the installed script does."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(a) for a in arguments])
        return Result(status, *capfd.readouterr())

    return call


def train_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """The folder of a run of four steps, which move the answers."""
    data = str(tiny.save_pairs(folder / "pairs.jsonl", 16))
    config = TrainConfig(
        model=str(base),
        data=[data],
        output=folder / "run",
        steps=4,
        batch_size=4,
        learning_rate=1e-2,
        **changes,
    )
    return train(config).output
