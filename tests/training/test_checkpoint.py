"""Checkpoints: whole or not there, also when the process is killed while it writes one."""

import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import LOCK
from orpo_mlx.run_folder.checkpoints import last_checkpoint
from orpo_mlx.run_folder.lock import is_held
from orpo_mlx.run_folder.state import load_state
from orpo_mlx.training.checkpoint import (
    Checkpoint,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from orpo_mlx.training.loop import train
from tests.alarm import HANG_SECONDS
from tests.training.runs import rows, settings, tensors

SAVED = Checkpoint(7, {"a": mx.array([1.5, 2.5])}, {"step": mx.array(7)}, "abc", "loop")

# A run whose second checkpoint is cut off by SIGKILL, after its second file.
KILLED = """
import os, signal, sys
from pathlib import Path
from orpo_mlx import backend
backend.prepare()  # the same BLAS as here, else the last bits differ
from orpo_mlx.training import checkpoint, loop
from tests.training.runs import settings

whole = checkpoint.save_tensors

def cut_off(file, tensors):
    whole(file, tensors)
    if file.name == checkpoint.MASTERS and "step-0000004" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_tensors = cut_off
loop.train(settings(*map(Path, sys.argv[1:]), steps=6, save_every=2))
"""


def save(output: Path, step: int) -> Path:
    return save_checkpoint(output, SAVED._replace(step=step), {"a": mx.array([1.5])}, {"k": 1})


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    save(tmp_path, 900)
    folder = save(tmp_path, 1000)
    assert last_checkpoint(tmp_path) == folder == tmp_path / "checkpoints" / "step-0001000"
    again = load_checkpoint(folder)
    assert (again.step, again.data) == (1000, "abc")
    assert mx.array_equal(again.weights["a"], SAVED.weights["a"])
    assert again.moments["step"].item() == 7


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, how: str) -> None:
    file = save(tmp_path, 7) / name
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(OrpoError, match=r"step-0000007 is damaged \(.*the checkpoint before it"):
        load_checkpoint(file.parent)


def test_a_save_that_fails_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[write] Unable to write")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OrpoError, match=r"cannot be written: .*Unable to write"):
        save(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]


@pytest.mark.touchy
def test_a_kill_in_the_middle_of_a_save_loses_nothing_before(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(llama), str(pairs_file), str(output)]
    killed = subprocess.run(command, check=False, timeout=HANG_SECONDS)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(p.name for p in (output / "checkpoints").iterdir())
    assert len(left) == 2
    assert left[0].startswith(".step-0000004.")
    assert left[1] == "step-0000002"
    state, held = load_state(output), (output / LOCK).stat().st_ino
    assert is_held(output) is False
    assert state is not None
    assert state[:4] == ("interrupted", "killed, or the machine went down", 2, 6)

    train(settings(llama, pairs_file, output, steps=6, save_every=2, resume=True))
    whole = tmp_path / "whole"
    train(settings(llama, pairs_file, whole, steps=6, save_every=2))
    assert tensors(output) == tensors(whole)
    assert rows(output) == rows(whole)
    assert [p.name for p in output.rglob(".*")] == [LOCK]
    assert (output / LOCK).stat().st_ino == held
    ended = load_state(output)
    assert ended is not None
    assert ended[:4] == ("done", "", 6, 6)
    assert ended.started == state.started


def pair(*ids: list[int]) -> EncodedPair:
    return EncodedPair(*(np.asarray(i, np.int32) for i in ids), location="file:1")


def test_the_fingerprint_is_of_all_ids_in_their_order() -> None:
    one, two = pair([1, 2], [3], [4]), pair([1], [2, 3], [4])
    same = fingerprint([one._replace(location="elsewhere:9"), two])
    assert fingerprint([one, two]) == same
    assert len({same, fingerprint([two, one]), fingerprint([one]), fingerprint([two, two])}) == 4
