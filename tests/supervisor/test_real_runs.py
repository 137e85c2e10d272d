"""Supervised training is training: the same files, bit for bit, after every fault."""

from pathlib import Path

import pytest

from orpo_mlx.run_folder.lock import is_held
from tests.supervisor.real import (
    Fault,
    assert_same_run,
    lives,
    settings_file,
    supervise,
)

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
