"""Supervised training is training: the same files, bit for bit, after every fault."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from orpo_mlx.run_folder.lock import is_held
from orpo_mlx.training.loop import train
from tests.supervisor.real import (
    Fault,
    assert_same_run,
    lives,
    settings_file,
    supervise,
)
from tests.training.runs import LONG, curve, settings

pytestmark = [pytest.mark.touchy, pytest.mark.long]

# Each after a new checkpoint (every second step), so that none counts as one of three in a row.
EACH: list[Fault] = [
    ("StepDone", 3, "SIGKILL"),
    ("MicroBatchDone", 6, "SIGABRT"),
    ("Evaluated", 7, "SIGSEGV"),
    ("StepDone", 9, "SIGBUS"),
    ("StepDone", 11, "device"),
    ("StepDone", 14, "silence"),
]


def test_a_run_survives_one_of_each_fault(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    file = settings_file(llama, data, tmp_path / "run", save_every=2)
    run = supervise(file, faults=EACH)
    assert run.returncode == 0, run.stderr
    assert_same_run(tmp_path / "run", whole)
    assert len(lives(file)) == 7
    ends = ("SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS", "failure of the device", "reported nothing")
    assert all(end in run.stderr for end in ends)
    assert run.stderr.count("Going on from the checkpoint of step") == 6
    assert not is_held(tmp_path / "run")


def test_a_run_out_of_memory_ends_by_itself(llama: Path, data: Path, tmp_path: Path) -> None:
    """The device reports it three times: nothing changes, then what is kept, then how many."""
    changes = {"steps": 8, "dropout": 0.0, "save_every": 2}
    train(settings(llama, data, tmp_path / "whole", **{**LONG, **changes}))
    file = settings_file(llama, data, tmp_path / "run", **changes)
    run = supervise(file, faults=[("StepDone", 3, "memory")] * 3)
    assert run.returncode == 0, run.stderr
    assert len(lives(file)) == 4
    assert "From now on with --grad-checkpoint" in run.stderr
    assert "From now on with --micro-batch-size 1 (it was 2)" in run.stderr
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["grad_checkpoint"], stored["micro_batch_size"]) == (True, 1)
    # float32: the sums of six steps in another order.
    np.testing.assert_allclose(
        curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-5, atol=0
    )
