"""Supervised runs of tiny bases as a person starts them, whose children meet given faults."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.alarm import HANG_SECONDS
from tests.training.runs import LONG, rows, settings, tensors

FAULTY = Path(__file__).parent / "faulty_python"
Fault = tuple[str, int, str]  # the event, its step, and what happens then


def settings_file(model: Path, data: Path, output: Path, **changes: Any) -> Path:
    """The settings of a run as a file next to its folder."""
    config = settings(model, data, output, **{**LONG, **changes})
    file = output.with_name(f"{output.name}.yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return file


def environment(folder: Path, faults: Sequence[Fault]) -> dict[str, str]:
    """That of a supervised run whose children meet these faults; `folder` counts them."""
    folder.mkdir(exist_ok=True)
    (folder / "faults.json").write_text(json.dumps(faults))
    paths = os.pathsep.join([str(FAULTY), os.environ["PYTHONPATH"]])
    return os.environ | {"PYTHONPATH": paths, "FAULTS_OF_TEST": str(folder)}


def command(file: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "orpo_mlx", "train", "--config", str(file), *flags]


def supervise(
    file: Path, *flags: str, faults: Sequence[Fault] = (), before: Sequence[str] = (), **more: Any
) -> "subprocess.CompletedProcess[str]":
    """The whole supervised run; `before` is a command that starts it."""
    env = environment(file.with_suffix(".lives"), faults)
    return subprocess.run(
        [*before, *command(file, "--supervise", *flags)],
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        **more,
    )


def lives(file: Path) -> list[int]:
    """The process ids of the children of a run, in their order."""
    files = file.with_suffix(".lives").glob("life-*")
    ordered = sorted(files, key=lambda life: int(life.name.removeprefix("life-")))
    return [int(life.read_text()) for life in ordered]


def assert_same_run(output: Path, whole: Path) -> None:
    """Metrics row by row; adapter and last checkpoint bit for bit."""
    assert rows(output) == rows(whole)
    last = max(path.name for path in (whole / "checkpoints").iterdir())
    expected = {n: v for n, v in tensors(whole).items() if "step-" not in n or last in n}
    actual = tensors(output)
    assert {name: actual.get(name) for name in expected} == expected


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
