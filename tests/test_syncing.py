"""What survives a power cut: files are flushed before they are renamed, the folder after it."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_mlx.files import replacing, sync_entries, sync_file
from orpo_mlx.training.loop import train
from tests.training.runs import settings

FULL = 51  # F_FULLFSYNC, which Python has on macOS alone


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every fsync and rename, by the names of what they are of."""
    seen: list[str] = []
    replace = Path.replace

    def fsync(descriptor: int) -> None:
        seen.append(f"fsync {name_of(descriptor)}")

    def renamed(self: Path, target: Path) -> Path:
        seen.append(f"rename {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    return seen


def name_of(descriptor: int) -> str:
    path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
    return f"{path.name}/" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.name


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    def control(descriptor: int, command: int) -> None:
        assert command == FULL
        calls.append(f"full {name_of(descriptor)}")

    monkeypatch.setattr("orpo_mlx.files.sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)


def make_folder(target: Path) -> None:
    with replacing(target) as made:
        made.mkdir()
        (made / "one").write_text("1")


def test_a_folders_files_and_entries_come_before_its_rename_and_its_parents_after(
    tmp_path: Path, calls: list[str]
) -> None:
    make_folder(tmp_path / "out")
    assert calls == ["fsync one", "fsync out/", "rename out", f"fsync {tmp_path.name}/"]


@pytest.mark.usefixtures("macos")
def test_macos_is_asked_to_empty_the_drives_own_memory(tmp_path: Path, calls: list[str]) -> None:
    make_folder(tmp_path / "out")
    assert calls == ["full one", "full out/", "rename out", f"full {tmp_path.name}/"]


@pytest.mark.usefixtures("macos")
def test_where_that_is_refused_fsync_is_what_is_left(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "fcntl", refused)
    make_folder(tmp_path / "out")
    assert calls == ["fsync one", "fsync out/", "rename out", f"fsync {tmp_path.name}/"]


@pytest.mark.parametrize(("code", "matters"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_need_not_sync_folders_but_files(
    tmp_path: Path, code: int, matters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OSError, match=os.strerror(code)):
        sync_file(tmp_path / "file")
    if matters:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync_entries(tmp_path)
    else:
        sync_entries(tmp_path)


@pytest.mark.usefixtures("macos")
def test_a_save_flushes_the_metrics_then_every_file_of_the_checkpoint_then_its_name(
    llama: Path, pairs_file: Path, tmp_path: Path, calls: list[str], monkeypatch: Any
) -> None:
    from orpo_mlx.training import run

    save, spans = run.Run.save, list[tuple[int, int]]()

    def watched(self: run.Run) -> None:
        start = len(calls)
        save(self)
        spans.append((start, len(calls)))

    monkeypatch.setattr(run.Run, "save", watched)
    train(settings(llama, pairs_file, tmp_path / "run", steps=2, save_every=1))
    assert len(spans) == 2
    for step, (start, end) in enumerate(spans, 1):
        seen = calls[start:end]
        name = f"step-{step:07d}"
        assert seen[0] == "full metrics.jsonl"
        assert seen[-3:] == [f"full {name}/", f"rename {name}", "full checkpoints/"]
        whole = {path.name for path in (tmp_path / "run" / "checkpoints" / name).iterdir()}
        assert {f"full {file}" for file in whole} <= set(seen[:-2])
