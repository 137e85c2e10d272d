"""Folders that are replaced: the new one complete, or the old one as it was."""

from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import check_writable, replacing, user_path


def write(target: Path, text: str) -> None:
    with replacing(target) as made:
        made.mkdir()
        (made / "file").write_text(text)


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


def test_a_home_that_nobody_has_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/pairs.jsonl") == tmp_path / "pairs.jsonl"
    assert user_path("~nobody-here/x.jsonl") == Path("~nobody-here/x.jsonl")
