"""What a run takes of the disk, reported before it starts, and what ends it."""

import errno
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.errors import DiskError, OrpoError
from orpo_mlx.events import Event, Saved
from orpo_mlx.files import size_text
from orpo_mlx.run_folder import room
from orpo_mlx.run_folder.room import (
    SPARE_BYTES,
    DiskNeed,
    explain_full_disk,
    report_disk_need,
    require_room,
)
from orpo_mlx.training import run as run_module
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.log import MetricsLog
from orpo_mlx.training.run import Run
from tests import tiny
from tests.run_folder.saved import save
from tests.training.runs import notices, rows, settings, stop_after, tensors

MB = 10**6
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The free bytes of every disk, to be changed."""
    left = [10**12]
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**12, 0, left[0]))
    return left


def reported(output: Path, need: DiskNeed) -> tuple[str, bool]:
    """The sentence, and whether it is a warning."""
    events: list[Event] = []
    report_disk_need(output, need, events.append)
    [text] = notices(events)
    return text, bool(notices(events, warning=True))


@pytest.mark.parametrize(
    ("due", "keep", "best", "there", "most"),
    [
        (10, 3, False, 0, 4),  # the oldest goes after the fourth is written
        (10, 3, True, 0, 5),  # the best is kept longer than the last ones
        (2, 3, False, 0, 2),
        (2, 3, True, 0, 2),
        (10, 3, False, 2, 2),
        (10, 3, True, 3, 2),
        (10, 3, False, 3, 1),
        (10, 3, False, 9, 1),
        (10, None, False, 3, 10),
        (10, None, True, 3, 10),
        (1, 1, False, 0, 1),
    ],
)
def test_the_need_is_of_what_is_kept_at_once(
    tmp_path: Path, free: list[int], due: int, keep: int | None, best: bool, there: int, most: int
) -> None:
    save(tmp_path, *range(there))
    free[0] = (most * 10 + 5) * MB + SPARE_BYTES
    need = DiskNeed(10 * MB, 5 * MB, due, keep, best=best)
    text, warning = reported(tmp_path, need)
    kept = "all are kept" if keep is None else f"the last {keep}{' and the best' * best} are kept"
    assert text == (
        f"A checkpoint takes 10.0 MB, {kept} (--keep-checkpoints): the run takes up to "
        f"{most * 10 + 5}.0 MB more of the disk, {size_text(free[0])} are free."
    )
    assert not warning
    free[0] -= 1
    text, warning = reported(tmp_path, need)
    assert text.endswith("are free. Make room, or keep fewer: it ends where one has no room.")
    assert warning


def test_not_even_one_checkpoint_is_an_error(tmp_path: Path, free: list[int]) -> None:
    free[0] = 10 * MB
    with pytest.raises(DiskError) as caught:
        report_disk_need(tmp_path, DiskNeed(10 * MB, 0, 1, 3), lambda event: None)
    assert str(caught.value) == (
        f"--output {tmp_path}: a checkpoint takes 10.0 MB, but only 10.0 MB are free. Make room, "
        "or name an --output on another disk."
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_full_disk_names_what_is_kept_and_what_to_do(
    tmp_path: Path, free: list[int], kept: bool
) -> None:
    folders = save(tmp_path, 30) if kept else []
    end = (
        f"The last checkpoint is kept: {folders[0]}. Make room, then continue with --resume."
        if kept
        else "No checkpoint was due yet. Make room, then begin again with --overwrite."
    )
    with pytest.raises(DiskError) as caught, explain_full_disk(tmp_path):
        raise DiskError("x cannot be written: the disk is full.")
    assert str(caught.value) == f"x cannot be written: the disk is full. {end}"
    free[0] = 2 * MB
    with pytest.raises(DiskError) as caught, explain_full_disk(tmp_path):
        require_room(tmp_path, "the checkpoint of step 40", 2 * MB)
    assert str(caught.value) == (
        "The disk has no room for the checkpoint of step 40: it takes 2.0 MB, but only 2.0 MB are "
        f"free. {end}"
    )


def sizes_of(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_need_of_a_run_is_the_size_of_its_files(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[DiskNeed] = []
    monkeypatch.setattr(run_module, "report_disk_need", lambda output, need, _: needs.append(need))
    base = tiny.save_base(tmp_path / "base", dtype=mx.bfloat16)
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    changes = {"fine_tune_type": kind, "num_layers": 1, "keep_quantized": True, "steps": 5}
    output = tmp_path / "run"
    train(settings(base, pairs, output, **changes, save_every=2, keep_checkpoints="all"))
    [need] = needs
    saved = sorted((output / "checkpoints").iterdir())
    assert (need.checkpoints, need.keep) == (len(saved), None) == (3, None)
    # Within what is kept free in any case: the config and the checksums of a checkpoint.
    size = sizes_of(list(saved[0].iterdir()))
    assert size - SPARE_BYTES / 8 < need.checkpoint_bytes < size + SPARE_BYTES / 8
    final = [output / "adapters.safetensors", *output.glob("model/*.safetensors")]
    assert len(final) == {"lora": 1, "full": 2}[kind]
    assert abs(need.final_bytes - sizes_of(final)) < SPARE_BYTES / 8


def test_validations_may_need_checkpoints_of_their_own(
    llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is the best so far writes one; those of a resumed run are the ones to come."""
    needs: list[DiskNeed] = []
    monkeypatch.setattr(run_module, "report_disk_need", lambda output, need, _: needs.append(need))
    valid = str(tiny.save_pairs(tmp_path / "valid.jsonl", 4, start=100))
    changes = {"steps": 12, "save_every": 4, "eval_every": 3}
    run = settings(llama, pairs_file, tmp_path / "run", **changes, valid_data=[valid])
    train(run, [stop_after(6)])
    train(run.model_copy(update={"resume": True}))
    train(settings(llama, pairs_file, tmp_path / "blind", **changes))
    # Of 3, 4, 6, 8, 9 and 12; of 8, 9 and 12; of 4, 8 and 12.
    assert [(need.checkpoints, need.best) for need in needs] == [(6, True), (3, True), (3, False)]


def test_a_run_whose_disk_fills_up_ends_with_its_last_checkpoint_and_goes_on(
    llama: Path, pairs_file: Path, tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others fill the disk after the second checkpoint; when they are gone the run goes on."""
    output, whole = tmp_path / "run", tmp_path / "whole"
    saves: list[int] = []
    true = Run.save

    def counted(self: Run) -> None:
        saves.append(self.step)
        free[0] = 100_000 if len(saves) == 3 else 10**12
        true(self)

    changes: dict[str, Any] = {"steps": 8, "save_every": 2}
    with monkeypatch.context() as patch, pytest.raises(OrpoError) as caught:
        patch.setattr(Run, "save", counted)
        train(settings(llama, pairs_file, output, **changes))
    assert str(caught.value).startswith("The disk has no room for the checkpoint of step 6: it")
    assert str(caught.value).endswith(
        f"The last checkpoint is kept: {output}/checkpoints/step-0000004. Make room, then continue "
        "with --resume."
    )
    free[0] = 10**12
    train(settings(llama, pairs_file, output, **changes, resume=True))
    train(settings(llama, pairs_file, whole, **changes))
    assert (tensors(output), rows(output)) == (tensors(whole), rows(whole))


def test_a_model_that_has_no_room_at_the_end_is_written_once_there_is_some(
    tmp_path: Path, free: list[int]
) -> None:
    """Of a full fine-tune: its last checkpoint is there, and is all that the model needs."""
    base = tiny.save_base(tmp_path / "base", dtype=mx.bfloat16)
    pairs, output = tiny.save_pairs(tmp_path / "pairs.jsonl", 8), tmp_path / "run"
    changes: dict[str, Any] = {"fine_tune_type": "full", "num_layers": 1, "keep_quantized": True}

    def fill(event: Event) -> None:
        if isinstance(event, Saved):
            free[0] = SPARE_BYTES + MB // 10

    with pytest.raises(DiskError) as caught:
        train(settings(base, pairs, output, **changes), [fill])
    assert str(caught.value).startswith("The disk has no room for what was trained: it takes ")
    assert str(caught.value).endswith("step-0000004. Make room, then continue with --resume.")
    assert not (output / "model").exists()
    free[0] = 10**12
    train(settings(base, pairs, output, **changes, resume=True))
    assert (output / "model" / "model.safetensors").exists()


def test_metrics_that_the_disk_does_not_take_end_the_run_with_what_is_kept(
    llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: MetricsLog, step: int, metrics: Any) -> None:
        if step == 3:
            raise DiskError("metrics.jsonl cannot be written: the disk is full.")

    monkeypatch.setattr(MetricsLog, "write", full)
    output = tmp_path / "run"
    with pytest.raises(DiskError) as caught:
        train(settings(llama, pairs_file, output, save_every=2))
    assert str(caught.value) == (
        "metrics.jsonl cannot be written: the disk is full. The last checkpoint is kept: "
        f"{output}/checkpoints/step-0000002. Make room, then continue with --resume."
    )


def test_a_disk_that_is_full_before_the_start_costs_nothing(
    llama: Path, pairs_file: Path, tmp_path: Path, free: list[int]
) -> None:
    output = tmp_path / "run"
    train(settings(llama, pairs_file, output, steps=1))
    before = tensors(output), rows(output)
    free[0] = 1000
    with pytest.raises(DiskError, match="a checkpoint takes .* but only 1.0 kB are free"):
        train(settings(llama, pairs_file, output, steps=1, overwrite=True, rank=8))
    assert (tensors(output), rows(output)) == before


def test_a_disk_that_refuses_while_a_checkpoint_is_written_is_explained_alike(
    llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        if "step-0000002" in str(folder):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("orpo_mlx.training.checkpoint.save_checksums", full)
    output = tmp_path / "run"
    with pytest.raises(DiskError) as caught:
        train(settings(llama, pairs_file, output, save_every=1))
    assert str(caught.value) == (
        f"{output}/checkpoints/step-0000002 cannot be written: the quota on this disk is used up. "
        f"The last checkpoint is kept: {output}/checkpoints/step-0000001. Make room, then continue "
        "with --resume."
    )
    assert room.has_room(output, 1)
