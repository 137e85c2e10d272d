"""What ends a run: numbers that are not finite, a device that fails; and what is kept then."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.errors import DeviceError, OrpoError
from orpo_mlx.training import run as run_module
from orpo_mlx.training.loop import train
from orpo_mlx.training.optim import Optimizer
from tests.tiny import toy_pair
from tests.training.runs import rows, settings

pytestmark = pytest.mark.touchy


def test_a_loss_that_is_not_finite_ends_the_run(llama: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    wild = {"learning_rate": 1e30, "warmup": 0, "save_every": 1}
    with pytest.raises(OrpoError) as caught:
        train(settings(llama, data / "train.jsonl", output, **wild))
    message = str(caught.value)
    assert message.startswith("The loss is not finite at step 2 (pairs: ")
    assert f"{data / 'train.jsonl'}:" in message
    assert "The first part that is not finite: the output of model.layers.0 on the " in message
    assert message.endswith(f"The last checkpoint is kept: {output}/checkpoints/step-0000001.")
    assert [row["step"] for row in rows(output)] == [1]
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-0000001"]


def test_work_that_macos_kills_ends_with_what_helps(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, calls = mx.eval, []

    def killed(*arrays: Any) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError(
                "[METAL] Command buffer execution failed: Impacting Interactivity "
                "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
            )
        evaluate(*arrays)

    output = tmp_path / "run"
    changes = {"save_every": 1, "plain": True, "valid_data": [], "num_layers": 1}
    monkeypatch.setattr("orpo_mlx.training.step.mx.eval", killed)
    with pytest.raises(OrpoError, match="kIOGPU") as caught:
        train(settings(llama, data / "train.jsonl", output, **changes, steps=40))
    for help_ in ("display", "--micro-batch-size", "AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "--resume"):
        assert help_ in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "[metal::malloc] Unable to allocate 10 bytes.",
        "Unable to allocate 10 bytes.",
    ],
)
def test_a_lack_of_memory_is_not_blamed_on_the_display(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def failed() -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("orpo_mlx.training.step.mx.synchronize", failed)
    with pytest.raises(DeviceError, match="There is not enough memory: ") as caught:
        train(settings(llama, data / "train.jsonl", tmp_path / "run", valid_data=[]))
    assert text in str(caught.value) and "--micro-batch-size" in str(caught.value)
    assert "display" not in str(caught.value)


def test_the_device_is_waited_for_before_what_it_computed_is_used(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def recorded(name: str, right: Any) -> Any:
        return lambda *a, **k: events.append(name) or right(*a, **k)

    monkeypatch.setattr("orpo_mlx.training.step.mx.synchronize", recorded("wait", lambda: None))
    monkeypatch.setattr(Optimizer, "update", recorded("update", Optimizer.update))
    for name in ("evaluate_encoded", "save_checkpoint"):
        right = getattr(run_module, name)
        monkeypatch.setattr(run_module, name, recorded(name, right))
    train(settings(llama, data, tmp_path / "run", steps=2, save_every=1))
    step = ["wait", "update", "wait", "save_checkpoint"]
    held_out = ["evaluate_encoded", "wait"]
    assert events == [*held_out, *step, *step[:2], *held_out, *step[2:]]


# By the number of the wait that throws: held-out pairs, then a step and its checkpoint, twice.
@pytest.mark.parametrize(
    ("wait", "updates", "kept", "checkpoints"),
    [
        (1, 0, [], []),
        (2, 0, [0], []),
        (3, 1, [0, 1], []),
        (4, 1, [0, 1], ["step-0000001"]),
        (5, 2, [0, 1, 2], ["step-0000001"]),  # the metrics at the end, before its checkpoint
    ],
)
def test_nothing_is_written_of_what_a_failed_device_computed(
    llama: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait: int,
    updates: int,
    kept: list[int],
    checkpoints: list[str],
) -> None:
    done, waits = [], []

    def failed() -> None:
        waits.append(1)
        if len(waits) == wait:
            raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")

    update = Optimizer.update
    monkeypatch.setattr("orpo_mlx.training.step.mx.synchronize", failed)
    monkeypatch.setattr(Optimizer, "update", lambda *a: done.append(1) or update(*a))
    output = tmp_path / "run"
    with pytest.raises(DeviceError, match="Metal ended the work"):
        train(settings(llama, data, output, steps=2, save_every=1))
    assert len(done) == updates
    written = rows(output) if (output / "metrics.jsonl").exists() else []
    assert [row["step"] for row in written] == kept
    assert [p.name for p in sorted((output / "checkpoints").glob("step-*"))] == checkpoints


def test_a_first_gradient_that_is_not_finite_is_not_blamed_on_the_rate(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Optimizer, "update", lambda *a: float("nan"))
    with pytest.raises(OrpoError, match="gradient is not finite at step 1") as caught:
        train(settings(llama, data, tmp_path / "run"))
    assert "--target-modules" in str(caught.value)
    assert "--learning-rate" not in str(caught.value)


def test_a_held_out_loss_that_is_not_finite_ends_the_run(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    wild = {"learning_rate": 1e30, "warmup": 0, "eval_every": 1}
    match = (
        r"held-out loss is not finite after step 1 .*valid.* first part .* model.layers.0 on the "
    )
    with pytest.raises(OrpoError, match=match):
        train(settings(llama, data, tmp_path / "run", **wild))
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("more", [0, 1])
def test_rows_that_all_have_the_weight_0_are_refused(
    llama: Path, tmp_path: Path, more: int
) -> None:
    data = tmp_path / "pairs.jsonl"
    weights = [0] * 8 + [1] * more
    lines = (json.dumps(toy_pair(n) | {"weight": w}) + "\n" for n, w in enumerate(weights))
    data.write_text("".join(lines))
    config = settings(llama, data, tmp_path / "run", steps=1)
    if more:
        train(config)
        return
    with pytest.raises(OrpoError, match="Every row to train on has the weight 0"):
        train(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
