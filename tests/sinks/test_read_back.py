"""Each sink's own reader gives back what metrics.jsonl holds, every row once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Event
from orpo_mlx.run_folder.folder import SINKS
from orpo_mlx.sinks.attach import OPENERS, sinks_for
from orpo_mlx.training.loop import train
from tests import tiny
from tests.alarm import HANG_SECONDS, no_hang
from tests.sinks.readers import (
    Points,
    tensorboard_points,
    trackio_points,
    wandb_points,
    wandb_records,
)
from tests.training.runs import notices, settings, stop_after

pytestmark = pytest.mark.touchy

READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": tensorboard_points,
    "wandb": wandb_points,
    "trackio": trackio_points,
}
KILLED = """
import os, signal, sys
from pathlib import Path
from orpo_mlx import backend
backend.prepare()
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import StepDone
from orpo_mlx.sinks.attach import sinks_for
from orpo_mlx.training.loop import train
config = TrainConfig.model_validate_json(sys.argv[1])
def kill(event):
    if isinstance(event, StepDone) and event.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
with sinks_for(config, print) as sinks:
    train(config, [*sinks, kill])
"""


@pytest.fixture
def config(llama: Path, pairs_file: Path, tmp_path: Path) -> TrainConfig:
    """Seven steps with four validations, for all sinks."""
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 3, start=50)
    return settings(
        llama,
        pairs_file,
        tmp_path / "run",
        valid_data=[str(valid)],
        log_to=list(OPENERS),
        steps=7,
        eval_every=3,
        save_every=2,
    )


def go(config: TrainConfig, *stops: Callable[[Event], None]) -> list[str]:
    """Train, and the warnings of the sinks."""
    events: list[Event] = []
    with sinks_for(config, events.append) as sinks:
        train(config, [*sinks, *stops])
    return notices(events)


def logged(output: Path) -> Points:
    """metrics.jsonl by metric."""
    points: Points = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            points.setdefault(name, []).append((step, value))
    return points


def assert_once_each(output: Path) -> None:
    expected = logged(output)
    assert [step for step, _ in expected["loss"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, _ in expected["eval_loss"]] == [0, 3, 6, 7]
    for name, read in READERS.items():
        points = read(output)
        assert points.keys() == expected.keys(), name
        for metric, rows in expected.items():
            assert [s for s, _ in points[metric]] == [s for s, _ in rows], (name, metric)


def test_a_stopped_and_resumed_run_is_there_once_with_its_values(config: TrainConfig) -> None:
    output = config.output
    # The third comes at the resume, and gets the steps before it too.
    assert go(config.model_copy(update={"log_to": ["tensorboard", "wandb"]}), stop_after(3)) == []
    first = json.loads((output / SINKS).read_text())["id"]
    assert go(config.model_copy(update={"resume": True})) == []
    assert json.loads((output / SINKS).read_text())["id"] == first
    assert_once_each(output)
    for name, read in READERS.items():
        # TensorBoard keeps float32, the others text of a float64 to its last digit.
        rtol = 1e-7 if name == "tensorboard" else 0
        points = read(output)
        for metric, rows in logged(output).items():
            np.testing.assert_allclose(points[metric], rows, rtol=rtol, err_msg=metric)
    assert {r.run.run_id for r in wandb_records(output) if r.HasField("run")} == {first}


def wait_for_the_end_of_wandbs_own_process(parent: int) -> None:
    """It ends by itself soon after its parent, and may write to its log until then."""

    def runs(file: Path) -> bool:
        try:
            command = file.read_bytes().split(b"\0")
        except OSError:
            return False
        return command[0].endswith(b"wandb-core") and str(parent).encode() in command

    with no_hang():
        while any(map(runs, Path("/proc").glob("[0-9]*/cmdline"))):
            time.sleep(0.01)


def test_a_killed_and_resumed_run_is_there_once(config: TrainConfig) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, config.model_dump_json()],
        # Not to this process's wandb service, which would outlive the child.
        env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        _, errors = child.communicate(timeout=HANG_SECONDS)
    assert child.returncode == -signal.SIGKILL, errors
    wait_for_the_end_of_wandbs_own_process(child.pid)
    assert go(config.model_copy(update={"resume": True})) == []
    assert_once_each(config.output)


def test_nothing_of_this_machine_is_sent(config: TrainConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"steps": 1, "log_to": ["wandb", "trackio"]})
    assert go(config) == []
    files = [
        *config.output.glob("wandb/offline-run-*/*.wandb"),
        *(tmp_path / "trackio").glob("*.db"),
    ]
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        assert b"pairs.jsonl" in content  # the settings are there, sources by their last part
        private = [str(tmp_path), str(Path.home()), os.uname().nodename + '"', sys.executable]
        assert not [text for text in private if text.encode() in content], file
