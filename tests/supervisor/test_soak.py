"""Supervised runs that are killed again and again, and that run out of memory in every way."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orpo_mlx.run_folder.lock import is_held
from orpo_mlx.training.checkpoint import load_checkpoint
from orpo_mlx.training.loop import train
from tests import tiny
from tests.alarm import HANG_SECONDS
from tests.supervisor.real import (
    Fault,
    assert_same_run,
    is_running,
    lives,
    settings_file,
    supervise,
)
from tests.training.runs import LONG, settings

pytestmark = [pytest.mark.touchy, pytest.mark.soak]

RUNS, KILLS = 10, 3
# Events without a step come at load: PhaseTime, Notice, Progress (of tokens, of validations).
AT_LOAD = ("PhaseTime", "Notice", "Progress")


def kills(seed: int) -> list[Fault]:
    """Three kills of a run, at load and at any step; none lies before the one before it."""
    random = np.random.default_rng(seed)
    steps = sorted(random.choice(np.arange(1, 20), size=KILLS, replace=False))
    events = random.choice(["StepDone", "MicroBatchDone", *AT_LOAD], size=KILLS)
    return [(str(event), int(step), "SIGKILL") for event, step in zip(events, steps, strict=True)]


@pytest.mark.parametrize("seed", range(RUNS))
def test_killed_children_change_nothing(
    llama: Path, data: Path, tmp_path: Path, whole: Path, seed: int
) -> None:
    file = settings_file(llama, data, tmp_path / "run", save_every=1 + seed % 5)
    run = supervise(file, faults=kills(seed))
    assert run.returncode == 0, run.stderr
    assert len(lives(file)) == KILLS + 1
    assert_same_run(tmp_path / "run", whole)
    assert not any(is_running(child) for child in lives(file))


PARENTS = [
    ("PhaseTime", 0), ("Notice", 0), ("Progress", 0), ("Started", 0), ("MicroBatchDone", 1),
    ("StepDone", 5), ("MicroBatchDone", 8), ("Evaluated", 14), ("Saved", 15), ("StepDone", 20),
]  # fmt: skip


@pytest.mark.parametrize(("event", "step"), PARENTS)
def test_killed_parents_leave_a_whole_checkpoint_and_a_free_folder(
    llama: Path, data: Path, tmp_path: Path, whole: Path, event: str, step: int
) -> None:
    output = tmp_path / "run"
    file = settings_file(llama, data, output)
    killed = supervise(file, faults=[(event, step, "parent SIGKILL")])
    assert killed.returncode == -signal.SIGKILL
    [child] = lives(file)
    late = time.monotonic() + HANG_SECONDS
    while is_running(child):
        assert time.monotonic() < late
        time.sleep(0.02)
    assert not is_held(output)
    last = max((output / "checkpoints").iterdir(), key=lambda folder: folder.name)
    assert load_checkpoint(last).step == int(last.name.removeprefix("step-"))
    train(settings(llama, data, output, **LONG, resume=True))
    assert_same_run(output, whole)


WIDE: dict[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "micro_batch_size": 8,
    "max_seq_length": 512,
    "dropout": 0.0,
    "eval_every": 0,
    "save_every": 0,
    "valid_data": [],
    "plain": True,  # no prefix is shared: then checkpointing changes no bit
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and pairs whose steps take far less memory with checkpointing."""
    folder = tmp_path_factory.mktemp("wide")
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
    base, file = tiny.save_base(folder / "base", **shape), folder / "pairs.jsonl"
    pairs = [tiny.toy_pair(number) for number in range(16)]
    for pair in pairs:
        pair |= {name: " ".join([pair[name]] * 25) for name in ("chosen", "rejected")}
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return base, file


def peak(file: Path, *flags: str) -> int:
    """The most kB that the child of a run had in memory at once."""
    run = supervise(file, *flags, faults=[("StepDone", 2, "record VmHWM")])
    assert run.returncode == 0, run.stderr
    return int((file.with_suffix(".lives") / "record").read_text())


def cgroup_root() -> Path | None:
    """Where a memory cgroup can be made; None where it cannot."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = root / f"orpo-mlx-{os.getpid()}"
        try:
            group.mkdir()
            (_limit_file(group)).write_text(str(2**40))
            (group / "cgroup.procs").read_text()
            return root
        except OSError:
            continue
        finally:
            if group.exists():
                group.rmdir()
    return None


def _limit_file(group: Path) -> Path:
    old = group / "memory.limit_in_bytes"
    return old if old.exists() else group / "memory.max"


def limited(way: str, limit_kb: int, group: Path) -> list[str]:
    """The command by which a run gets no more memory than that."""
    if way == "RLIMIT_DATA":
        return ["sh", "-c", f'ulimit -d {limit_kb}; exec "$@"', "sh"]
    group.mkdir()
    _limit_file(group).write_text(str(1024 * limit_kb))
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]


WAYS = ["RLIMIT_DATA", "cgroup"] if cgroup_root() else ["RLIMIT_DATA"]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_the_system_gives_too_little_memory_ends_by_itself(
    wide: tuple[Path, Path], tmp_path: Path, way: str
) -> None:
    files = {name: settings_file(*wide, tmp_path / name, **WIDE) for name in ("a", "b", "run")}
    much = peak(files["a"])
    little = peak(files["b"], "--grad-checkpoint")
    assert much > 1.2 * little
    root = cgroup_root() if way == "cgroup" else tmp_path
    assert root
    group = root / f"orpo-mlx-{os.getpid()}"
    try:
        before = limited(way, (much + little) // 2, group)
        run = supervise(files["run"], before=before)
    finally:
        if group.exists():
            group.rmdir()
    assert run.returncode == 0, run.stderr
    assert "It counts as a lack of memory" in run.stderr
    assert "From now on with --grad-checkpoint" in run.stderr
    assert len(lives(files["run"])) == 3
    assert_same_run(tmp_path / "run", tmp_path / "a")


def test_two_kills_in_a_row_keep_less_and_change_no_bit(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    file = settings_file(llama, data, tmp_path / "run")
    run = supervise(file, faults=[("StepDone", 7, "SIGKILL")] * 2)
    assert run.returncode == 0, run.stderr
    assert "From now on with --grad-checkpoint" in run.stderr
    assert_same_run(tmp_path / "run", whole)
