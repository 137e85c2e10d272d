"""Which checkpoints a run has, and which are removed."""

import errno
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.run_folder.checkpoints import (
    checkpoint_to_resume,
    checkpoints_of,
    last_checkpoint,
    prune_checkpoints,
    step_of,
)
from orpo_mlx.run_folder.folder import clear_strays
from tests.run_folder.saved import save


def steps(output: Path) -> list[int]:
    return [step_of(folder) for folder in checkpoints_of(output)]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    """Also where the number has more digits than the name provides for."""
    save(tmp_path, 10_000_000, 9_999_999, 12)
    assert steps(tmp_path) == [12, 9_999_999, 10_000_000]


def test_what_others_put_there_is_not_a_checkpoint(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 40)
    for name in ("step-0000041 copy", "step-0000042.bak", "step-", "damaged-step-0000043"):
        (folder.parent / name).mkdir()
    (folder.parent / "step-0000044").touch()
    assert last_checkpoint(tmp_path) == folder
    prune_checkpoints(tmp_path, 1, set())
    assert len(list(folder.parent.iterdir())) == 6


@pytest.mark.parametrize(
    ("keep", "protected", "left"),
    [
        (1, set(), [5]),
        (3, set(), [3, 4, 5]),
        (3, {1}, [1, 3, 4, 5]),
        (2, {5, 2, 9}, [2, 4, 5]),
        (9, set(), [1, 2, 3, 4, 5]),
        (None, set(), [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_protected_stay(
    tmp_path: Path, keep: int | None, protected: set[int], left: list[int]
) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    prune_checkpoints(tmp_path, keep, protected)
    assert steps(tmp_path) == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_a_removal_that_is_cut_short_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)

    def killed(path: Path) -> None:
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("orpo_mlx.files.shutil.rmtree", killed)
        prune_checkpoints(tmp_path, 1, set())
    assert steps(tmp_path) == [2]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    clear_strays(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]


def test_a_checkpoint_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, _) = save(tmp_path, 1, 2)

    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OrpoError, match=f"{old} cannot be removed: Permission denied"):
        prune_checkpoints(tmp_path, 1, set())


def test_a_run_without_a_checkpoint_names_the_one_that_it_was_to_replace(tmp_path: Path) -> None:
    start = f"--resume: {tmp_path} holds no checkpoint yet. Start it again with --overwrite."
    with pytest.raises(OrpoError) as caught:
        checkpoint_to_resume(tmp_path, lambda event: None)
    assert str(caught.value) == start
    (tmp_path / ".replaced").mkdir()
    (tmp_path / ".replaced" / "config.yaml").touch()
    with pytest.raises(OrpoError) as caught:
        checkpoint_to_resume(tmp_path, lambda event: None)
    aside = tmp_path / ".replaced"
    assert str(caught.value) == (
        f"{start} The run that it was to replace is kept in {aside} until then."
    )
