"""Damage of any file of a checkpoint is seen and named, and a whole checkpoint is read once."""

import errno
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.run_folder.checkpoints import (
    checkpoint_to_resume,
    form_of_checkpoint,
    last_checkpoint,
    pairs_of_checkpoint,
    prune_checkpoints,
)
from orpo_mlx.run_folder.checksums import SUMS, damage_of, has_checksums
from tests.run_folder.saved import DAMAGES, FILES, append_space, flip, problem_of, save, unlink
from tests.training.runs import notices


def test_lengths_and_digests_are_of_every_file_as_it_is(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 7)
    assert {p.name for p in folder.iterdir()} == {*FILES, SUMS}
    listed = json.loads((folder / SUMS).read_text())["files"]
    assert listed == {
        name: {
            "bytes": len(content := (folder / name).read_bytes()),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for name in FILES
    }
    assert damage_of(folder) == []


@pytest.mark.parametrize("name", [*FILES, SUMS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_of_each_file_is_seen_and_the_checkpoint_before_it_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    before, folder = save(tmp_path, 30, 40)
    problem = problem_of(folder / name, damage)
    damage(folder / name)
    events: list[Event] = []
    assert checkpoint_to_resume(tmp_path, events.append) == before
    [warning] = notices(events)
    assert notices(events, warning=True) == [warning]
    assert warning == (
        f"checkpoints/step-0000040 is damaged ({problem}): going on from step-0000030. It is now "
        "damaged-step-0000040, and is removed once the run has come as far again."
    )
    # Everybody who looks for the last checkpoint from now on sees the same one.
    assert last_checkpoint(tmp_path) == before
    assert (pairs_of_checkpoint(tmp_path), form_of_checkpoint(tmp_path)) == ("abc", "spans")


def test_every_byte_of_the_checksums_counts(tmp_path: Path) -> None:
    """By any bit, also the one that makes a small letter of a digest a capital."""
    (folder,) = save(tmp_path, 7)
    whole = (folder / SUMS).read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x20 if position % 2 else 1 << position // 2 % 8
        (folder / SUMS).write_bytes(changed)
        assert damage_of(folder) == [f"{SUMS}: its content has changed"]


def test_extra_white_space_is_damage_too(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 7)
    append_space(folder / SUMS)
    assert damage_of(folder) == [f"{SUMS}: its content has changed"]


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"files": 3}', b"\xff", b"[" * 100_001])
def test_anything_may_be_in_place_of_the_checksums(tmp_path: Path, content: bytes) -> None:
    (folder,) = save(tmp_path, 7)
    (folder / SUMS).write_bytes(content)
    assert damage_of(folder) == [f"{SUMS}: its content has changed"]


def test_files_of_others_are_not_damage(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 7)
    (folder / ".DS_Store").touch()
    (folder / "notes.md").touch()
    assert damage_of(folder) == []


def test_a_disk_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = save(tmp_path, 7)
    whole = Path.open

    def failing(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "weights.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return whole(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", failing)
    assert damage_of(folder) == ["weights.safetensors: Input/output error"]


def test_each_file_of_a_checkpoint_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 30)
    (folder,) = save(tmp_path, 40)
    opened: list[Path] = []
    true = io.open

    def counted(file: Any, *arguments: Any, **named: Any) -> Any:
        opened.append(Path(file))
        return true(file, *arguments, **named)

    monkeypatch.setattr(io, "open", counted)
    assert checkpoint_to_resume(tmp_path, lambda event: None) == folder
    assert sorted(opened) == sorted(folder / name for name in (*FILES, SUMS))


def test_if_no_checkpoint_is_whole_all_are_named_and_none_is_moved(tmp_path: Path) -> None:
    folders = save(tmp_path, 9, 10, 11)
    for folder, name in zip(folders, ("state.json", SUMS, "weights.safetensors"), strict=True):
        flip(folder / name)
    with pytest.raises(OrpoError) as caught:
        checkpoint_to_resume(tmp_path, lambda event: None)
    assert str(caught.value) == (
        f"--resume: every checkpoint in {tmp_path}/checkpoints is damaged:\n"
        "  step-0000011: weights.safetensors: its content has changed\n"
        "  step-0000010: checksums.json: its content has changed\n"
        "  step-0000009: state.json: its content has changed\n"
        "Restore one from a backup, or start again with --overwrite."
    )
    assert sorted((tmp_path / "checkpoints").iterdir()) == folders


def as_before_checksums(folder: Path) -> None:
    unlink(folder / SUMS)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 1}) + "\n")


def test_old_checkpoints_are_read_as_before_and_it_is_reported_once(tmp_path: Path) -> None:
    folders = save(tmp_path, 1, 2)
    for folder in folders:
        as_before_checksums(folder)
        assert not has_checksums(folder)
    events: list[Event] = []
    assert checkpoint_to_resume(tmp_path, events.append) == folders[1]
    assert notices(events, warning=False) == [
        "checkpoints/step-0000002, of an earlier version, has no checksums: not checked."
    ]


def test_a_damaged_checkpoint_may_be_followed_by_an_old_one(tmp_path: Path) -> None:
    old, new = save(tmp_path, 1, 2)
    as_before_checksums(old)
    unlink(new / SUMS)  # its state says that it had one
    events: list[Event] = []
    assert checkpoint_to_resume(tmp_path, events.append) == old
    assert [
        e.startswith("checkpoints/step-0000002 is damaged (checksums.json: missing)")
        for e in notices(events)
    ] == [False, True]


def test_a_damaged_checkpoint_goes_once_the_run_has_come_as_far_again(tmp_path: Path) -> None:
    _, damaged = save(tmp_path, 30, 40)
    flip(damaged / "weights.safetensors")
    checkpoint_to_resume(tmp_path, lambda event: None)
    save(tmp_path, 35)
    prune_checkpoints(tmp_path, None, set())
    names = ["damaged-step-0000040", "step-0000030", "step-0000035"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == names
    save(tmp_path, 40)
    prune_checkpoints(tmp_path, None, set())
    names = ["step-0000030", "step-0000035", "step-0000040"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == names
