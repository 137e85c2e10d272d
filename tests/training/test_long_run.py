"""Over many steps with every sink a run holds no more memory or files than at their beginning."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.sinks.attach import OPENERS
from tests import tiny
from tests.alarm import HANG_SECONDS
from tests.sinks.readers import tensorboard_points, trackio_points, wandb_points
from tests.training.runs import settings

pytestmark = pytest.mark.touchy
# What is loaded on first use is there by then: checkpoints, validations, answers, the sinks.
WARM = 200


def long_run(base: Path, folder: Path, steps: int) -> list[dict[str, Any]]:
    """What a process holds at each 100 steps of a run with everything that repeats in it."""
    pairs = tiny.save_pairs(folder / "pairs.jsonl", 64)
    valid = tiny.save_pairs(folder / "valid.jsonl", 4, start=100)
    (folder / "prompts.txt").write_text("my router is broken\n")
    config = settings(
        base, pairs, folder / "run", valid_data=[str(valid)], steps=steps, eval_every=50,
        save_every=50, dropout=0.1, sample_prompts=folder / "prompts.txt", log_to=list(OPENERS),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.long_run_child", config.model_dump_json(), "100"],
        env=os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS * (1 + steps // 500),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["notices"] == []
    return result["measured"]


def assert_flat(measured: list[dict[str, Any]]) -> None:
    (warm,) = [at for at in measured if at["step"] == WARM]
    end = measured[-1]
    # Buffers of the sinks' threads come and go: a few MB of about 300.
    assert end["anonymous_kb"] <= 1.03 * warm["anonymous_kb"], measured
    assert end["files"] <= warm["files"], measured
    assert [at["zombies"] for at in measured] == [0] * len(measured)


def assert_every_step_once(
    run: Path, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder / "trackio")
    for read in (tensorboard_points, wandb_points, trackio_points):
        assert [step for step, _ in read(run)["loss"]] == list(range(1, steps + 1)), read


@pytest.mark.long
def test_three_hundred_steps_hold_what_two_hundred_did(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_flat(long_run(llama, tmp_path, 300))
    assert_every_step_once(tmp_path / "run", 300, tmp_path, monkeypatch)


@pytest.mark.soak
def test_two_thousand_steps_hold_what_two_hundred_did(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measured = long_run(llama, tmp_path, 2000)
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *map(str, measured), ""]))
    assert_flat(measured)
    assert_every_step_once(tmp_path / "run", 2000, tmp_path, monkeypatch)
