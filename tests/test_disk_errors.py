"""A disk that is full or read-only, whichever library meets it: one message that names it."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import pyarrow as pa
import pytest

from orpo_mlx.data.tokens import cache
from orpo_mlx.errors import DiskError, OrpoError
from orpo_mlx.events import Event
from orpo_mlx.files import check_writable, replacing, write_error
from orpo_mlx.model.adapters import save_tensors
from orpo_mlx.model.tokenizer import save_tokenizer
from orpo_mlx.run_folder.folder import replacing_run
from orpo_mlx.training import dataset
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import notices, settings

FULL = "the disk is full"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (Exception("No space left on device (os error 28)"), FULL),
        (pa.ArrowException("Error writing bytes to file. Detail: [errno 28] No space left"), FULL),
        (OSError(errno.EROFS, "Read-only file system"), "the disk is read-only"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota on this disk is used up"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("[write] Unable to write 711 bytes to file.."), "[write] Unable .* to file"),
    ],
)
def test_errors_of_all_libraries_say_what_the_disk_refuses(error: Exception, why: str) -> None:
    refused = write_error(Path("out"), error)
    assert isinstance(refused, DiskError) == ("disk" in why)
    with pytest.raises(OrpoError, match=rf"^out cannot be written: {why}\.$".replace("[w", r"\[w")):
        raise refused


def fill_the_disk(patch: pytest.MonkeyPatch, free: int) -> None:
    """MLX's words for a write that fails, on a disk with so many bytes free."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[write] Unable to write 711 bytes to file..")

    usage = namedtuple("usage", "total used free")
    patch.setattr(mx, "save_safetensors", full)
    patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))


@pytest.mark.parametrize(("free", "why"), [(300, FULL), (10**9, "Unable to write 711 bytes")])
def test_a_full_disk_is_distinguished_from_mlxs_other_failures(
    free: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, free)
    with (
        pytest.raises(OrpoError, match=f"a.safetensors cannot be written: .*{why}"),
        replacing(tmp_path / "a.safetensors") as file,
    ):
        save_tensors(file, {"a": mx.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_being_made_is_called_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, 0)
    with (
        pytest.raises(DiskError, match=f"^{tmp_path}/out cannot be written: {FULL}.$"),
        replacing(tmp_path / "out") as folder,
    ):
        folder.mkdir()
        with replacing(folder / "a.safetensors") as file:
            save_tensors(file, {"a": mx.ones(2)})


def test_a_full_disk_at_the_tokenizer_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny.build_tokenizer()

    def full(*args: Any) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(DiskError, match=FULL):
        save_tokenizer(tokenizer, tmp_path)


def test_what_cannot_be_written_before_a_run_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(OrpoError, match="run cannot be written: .*the disk is read-only"):
        check_writable(tmp_path / "run")


@pytest.mark.parametrize("when", ["at the start", "at the end"])
def test_a_disk_that_turns_read_only_does_not_hide_what_happened(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming is refused from then on, what is put aside included."""

    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "config.yaml").touch()
    if when == "at the start":
        monkeypatch.setattr(Path, "rename", refused)
    with (
        pytest.raises(OrpoError, match="read-only" if when == "at the start" else "^the reason$"),
        replacing_run(tmp_path),
    ):
        monkeypatch.setattr(Path, "rename", refused)
        raise OrpoError("the reason")


def test_a_token_cache_on_a_full_disk_is_left_for_a_temporary_folder(
    llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path / "cache"))
    true = dataset._stores
    used = []

    def full(*args: Any) -> Any:
        used.append(args[4])
        if args[4] == cache.token_cache():
            raise DiskError(f"{args[4]} cannot be written: {FULL}.")
        return true(*args)

    monkeypatch.setattr(dataset, "_stores", full)
    events: list[Event] = []
    train(settings(llama, pairs_file, tmp_path / "run", steps=1), [events.append])
    assert len(used) == 2
    [warning] = [text for text in notices(events, warning=True) if FULL in text]
    assert warning.endswith("for this run only; set ORPO_MLX_CACHE to another folder.")
    assert not used[1].exists()
