"""Folders that are replaced: the new one complete, or the old one as it was."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_mlx import files
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import TRIES, check_folder, check_writable, remove, replacing, user_path


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system, or a disk, that cannot swap two folders at once."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)


def write(target: Path, text: str) -> None:
    with replacing(target) as made:
        made.mkdir()
        (made / "file").write_text(text)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "old")

    def broken(self: Path, target: Path) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises((OrpoError, KeyboardInterrupt)):
        patch.setattr(Path, "replace", broken)
        write(tmp_path / "out", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("moment", ["before the old one is aside", "after it"])
def test_two_processes_may_put_the_same_folder_there(
    old: bool, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is always done just then; the last stays, and nothing else is left."""
    target = tmp_path / "out"
    if old:
        write(target, "old")
    rename = {"before the old one is aside": "rename", "after it": "replace"}[moment]
    true = getattr(Path, rename)
    others = iter(["one", "two", "three"])

    def faster(self: Path, name: Path) -> Path:
        if text := next(others, ""):
            if target.exists():
                remove(target)
            target.mkdir()
            (target / "file").write_text(text)
        moved: Path = true(self, name)
        return moved

    monkeypatch.setattr(Path, rename, faster)
    write(target, "mine")
    assert (target / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(list(others)) == {"rename": 3 - old, "replace": 0}[rename]


@pytest.mark.usefixtures("no_exchange")
def test_a_folder_that_vanishes_just_then_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "old")
    true, calls = Path.rename, []

    def vanished(self: Path, name: Path) -> Path:
        if not calls:
            remove(self)
        calls.append(name)
        return true(self, name)

    monkeypatch.setattr(Path, "rename", vanished)
    write(tmp_path / "out", "mine")
    assert (tmp_path / "out" / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_exchange")
def test_what_fails_every_time_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    calls = []

    def full(self: Path, target: Path) -> None:
        calls.append(target)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch, pytest.raises(OrpoError, match="Directory not empty"):
        patch.setattr(Path, "replace", full)
        write(tmp_path / "out", "new")
    assert len(calls) == TRIES
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path(), "new")
    assert (tmp_path / "here" / "file").read_text() == "new"


def test_a_folder_that_may_not_be_looked_into_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)  # root may look everywhere
    with pytest.raises(OrpoError, match=r"run cannot be written: .* \(Permission denied\)"):
        check_writable(tmp_path / "closed" / "run")


def surrogate(folder: Path) -> Path:
    return folder / "bytes\udcff" / "run"


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def below_dangling(folder: Path) -> Path:
    return dangling(folder) / "sub" / "run"


def long_name(folder: Path) -> Path:
    return folder / ("x" * 256)


def below_long_name(folder: Path) -> Path:
    return folder / ("é" * 128) / "run"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (surrogate, "its name is not UTF-8 text"),
        (dangling, "is a link to .*nowhere, which does not exist"),
        (
            below_dangling,
            "run cannot be written: .*link is a link to .*nowhere, which does not exist",
        ),
        (long_name, "cannot be written: .*File name too long"),
        (below_long_name, "cannot be written: .*File name too long"),
    ],
)
@pytest.mark.parametrize("check", [check_writable, check_folder])
def test_names_that_no_folder_can_have_are_one_message(
    tmp_path: Path, make: Callable[[Path], Path], why: str, check: Callable[[Path], None]
) -> None:
    with pytest.raises(OrpoError, match=why):
        check(make(tmp_path))


def test_a_home_that_nobody_has_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/pairs.jsonl") == tmp_path / "pairs.jsonl"
    assert user_path("~nobody-here/x.jsonl") == Path("~nobody-here/x.jsonl")
