"""Two runs in one folder: the second is refused in every order, and changes nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.cli.train import ask_if_exists
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, PhaseTime, StepDone
from orpo_mlx.files import LOCK
from orpo_mlx.run_folder.lock import is_held, locked
from orpo_mlx.training.loop import train, train_in_locked_folder
from tests.alarm import HANG_SECONDS
from tests.training.runs import settings, stop_after, tensors

WAYS: dict[str, dict[str, Any]] = {
    "train": {},
    "overwrite": {"overwrite": True},
    "resume": {"resume": True},
}


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file below a folder, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refused_by_command(config: TrainConfig) -> str:
    """What `orpo-mlx train` in a process of its own reports."""
    file = config.output.with_suffix(".yaml")
    values = config.model_dump(mode="json", exclude_unset=True)
    flags = [f"--{name}" for name in ("resume", "overwrite") if values.pop(name, False)]
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "orpo_mlx", "train", "--config", str(file), *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert result.returncode == 1
    return result.stderr


def refused_by_function(config: TrainConfig) -> str:
    with pytest.raises(OrpoError) as caught:
        train(config)
    return str(caught.value)


@pytest.fixture(scope="module")
def stopped(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first step. Do not write there."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    train(settings(llama, data, output), [stop_after(1)])
    return output


@pytest.mark.touchy
@pytest.mark.parametrize(
    ("first", "moment", "try_second"),
    [
        *((way, StepDone, refused_by_command) for way in WAYS),
        *((way, PhaseTime, refused_by_function) for way in WAYS),  # while it reads its input
    ],
)
def test_a_second_run_is_refused_in_every_order(
    llama: Path,
    data: Path,
    tmp_path: Path,
    stopped: Path,
    first: str,
    moment: type[Event],
    try_second: Callable[[TrainConfig], str],
) -> None:
    output = tmp_path / "run"
    if first != "train":
        shutil.copytree(stopped, output)
    tried: list[str] = []

    def begin_others(event: Event) -> None:
        if not isinstance(event, moment) or tried:
            return
        before = contents(output)
        for way in WAYS:
            message = try_second(settings(llama, data, output, **WAYS[way]))
            assert f"{output} is in use by process {os.getpid()} on " in message
            assert "Traceback" not in message
            tried.append(way)
        assert contents(output) == before

    result = train(settings(llama, data, output, **WAYS[first]), [begin_others])
    assert (tried, result.step) == ([*WAYS], 4)
    assert is_held(output) is False


def test_nobody_is_asked_about_a_folder_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*arguments: Any, **keywords: Any) -> str:
        raise AssertionError("a question was asked")

    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("click.prompt", ask)
    (tmp_path / "config.yaml").touch()
    config = TrainConfig(model="base", data=["pairs.jsonl"], output=tmp_path)
    with pytest.raises(AssertionError):
        ask_if_exists(config)
    with (
        locked(tmp_path, lambda event: None),
        pytest.raises(OrpoError, match="is in use by process"),
    ):
        ask_if_exists(config)


def test_replacing_a_run_keeps_its_lock_file(
    llama: Path, data: Path, tmp_path: Path, stopped: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(stopped, output)
    inode = (output / LOCK).stat().st_ino
    train(settings(llama, data, output, overwrite=True, steps=1))
    assert (output / LOCK).stat().st_ino == inode
    with pytest.raises(OrpoError, match="is not finite"):
        train(settings(llama, data, output, overwrite=True, learning_rate=1e30, warmup=0))
    assert (output / LOCK).stat().st_ino == inode


def test_a_run_that_fails_before_it_writes_leaves_no_folder(llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapters" / "run"
    for changes in ({}, {"resume": True}):
        with pytest.raises(OrpoError):
            train(settings(llama, tmp_path / "missing.jsonl", output, **changes))
        assert list(tmp_path.iterdir()) == []


def test_a_caller_that_holds_the_lock_trains_in_it(
    llama: Path, data: Path, tmp_path: Path, stopped: Path
) -> None:
    config = settings(llama, data, tmp_path / "run")
    with locked(config.output, lambda event: None):
        assert train_in_locked_folder(config, [stop_after(1)]).step == 1
        assert is_held(config.output)
    assert tensors(config.output) == tensors(stopped)
