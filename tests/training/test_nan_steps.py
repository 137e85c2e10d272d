"""Steps whose loss or gradient is not finite: what is saved, named, left out; and going on."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map_with_path

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, StepDone
from orpo_mlx.training.checks.not_finite import first_gradient, first_part
from orpo_mlx.training.forward_path import ForwardPath, plain_path
from orpo_mlx.training.loop import train
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.run import Run
from orpo_mlx.training.step import TrainStep
from tests import tiny
from tests.training.runs import notices, rows, settings, stop_after, tensors

DOWN = "model.layers.1.mlp.down_proj.lora_b"
SIX: dict[str, Any] = {"steps": 6, "dropout": 0.1}


def plant_loss(patch: pytest.MonkeyPatch, steps: Collection[int]) -> None:
    """In these steps, from 0, the loss of each micro-batch's second pair is NaN."""
    take, micro_step, current = TrainStep.take, TrainStep.micro_step, [-1]

    def at(self: TrainStep, step: int) -> Any:
        current[0] = step
        return take(self, step)

    def planted(self: TrainStep, *arguments: Any) -> Any:
        metrics, gradients = micro_step(self, *arguments)
        if current[0] in steps:
            loss = metrics["loss"]
            metrics["loss"] = mx.where(mx.arange(len(loss)) == 1, mx.array(mx.nan), loss)
        return metrics, gradients

    patch.setattr(TrainStep, "take", at)
    patch.setattr(TrainStep, "micro_step", planted)


def second_pair(run: Run, step: int) -> str:
    """Where the second pair of a step's first micro-batch comes from."""
    micro_batch = run.plan.step(step)[0]
    batch = run.path.batch(run.train, micro_batch, "response", run.plan.limit(micro_batch))
    return run.train[int(batch.indices[1])].location


def refusal(*arguments: Any, **changes: Any) -> str:
    with pytest.raises(OrpoError) as caught:
        train(settings(*arguments, **SIX | changes))
    return str(caught.value)


def saved(output: Path) -> list[str]:
    return sorted(folder.name for folder in (output / "checkpoints").iterdir())


def test_the_step_before_is_saved_and_resuming_meets_the_same_pair(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Run]
) -> None:
    output = tmp_path / "run"
    plant_loss(monkeypatch, {3})
    message = refusal(llama, data, output)
    assert message == (
        f"The loss is not finite at step 4 (pairs: {second_pair(runs[0], 3)}). The first part that "
        "is not finite: in the training pass alone: the model's own forward of the pair is finite "
        "(see what --plain gives). Lower --learning-rate, or look at these pairs. --resume meets "
        "it again; --resume --on-nan skip leaves its update out. The last checkpoint is kept: "
        f"{output}/checkpoints/step-0000003."
    )
    assert saved(output) == ["step-0000003"]
    before = rows(output), tensors(output)
    assert [row["step"] for row in before[0]] == [0, 1, 2, 3]
    assert refusal(llama, data, output, resume=True) == message
    assert (rows(output), tensors(output)) == before
    # What was saved is what a run without the fault has after three steps.
    monkeypatch.undo()
    train(settings(llama, data, tmp_path / "sound", **SIX), [stop_after(3)])
    sound = tensors(tmp_path / "sound")
    assert before[1] == {n: v for n, v in sound.items() if n.startswith("checkpoints")}


def test_a_step_that_is_left_out_changes_nothing_but_the_count(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Run]
) -> None:
    events: list[Event] = []
    with monkeypatch.context() as patch:
        plant_loss(patch, {3})
        train(settings(llama, data, tmp_path / "run", **SIX, on_nan="skip"), [events.append])
    update = Optimizer.update

    def but_the_fourth(self: Optimizer, gradients: Any, rate: float) -> float:
        return 1.0 if runs[-1].step == 3 else update(self, gradients, rate)

    monkeypatch.setattr(Optimizer, "update", but_the_fourth)
    train(settings(llama, data, tmp_path / "reference", **SIX))
    assert tensors(tmp_path / "run") == tensors(tmp_path / "reference")
    reference = rows(tmp_path / "reference")
    rate = next(row["learning_rate"] for row in reference if row["step"] == 4)
    skipped = {"step": 4, "skipped": 1.0, "learning_rate": rate}
    assert rows(tmp_path / "run") == [skipped if r["step"] == 4 else r for r in reference]
    assert [e.step for e in events if isinstance(e, StepDone)] == [1, 2, 3, 4, 5, 6]
    (warning,) = notices(events, warning=True)
    assert warning.startswith("The loss is not finite at step 4 (pairs: ")
    assert second_pair(runs[0], 3) in warning
    assert warning.endswith("(1 so far, 1 in a row; 5 in a row end the run).")


def test_a_run_resumes_bit_for_bit_across_a_step_that_is_left_out(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_loss(monkeypatch, {1, 3})
    train(settings(llama, data, tmp_path / "whole", **SIX, on_nan="skip"))
    output = tmp_path / "run"
    for step in (2, 4):
        train(
            settings(llama, data, output, **SIX, on_nan="skip", resume=step > 2), [stop_after(step)]
        )
    train(settings(llama, data, output, **SIX, resume=True))
    assert rows(output) == rows(tmp_path / "whole")
    assert [row["skipped"] for row in rows(output) if "skipped" in row] == [1.0, 2.0]
    whole = tensors(tmp_path / "whole")
    assert whole.items() <= tensors(output).items()
    # Left out on request, after the run had ended there.
    asked = tmp_path / "asked"
    refusal(llama, data, asked)
    train(settings(llama, data, asked, **SIX, resume=True, on_nan="skip"))
    assert whole.items() <= tensors(asked).items()


def test_five_steps_in_a_row_end_the_run_and_four_do_not(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_loss(monkeypatch, {1, 2, 3, 4, 6, 7, 8, 9, 10})
    output = tmp_path / "run"
    message = refusal(llama, data, output, steps=12, on_nan="skip")
    assert message.startswith("The loss is not finite at step 11 (pairs: ")
    assert "It is the 5th step in a row whose update would be left out." in message
    assert saved(output) == ["step-0000010"]
    counts = [row.get("skipped") for row in rows(output) if row["step"]]
    assert counts == [None, 1, 2, 3, 4, None, 5, 6, 7, 8]
    assert refusal(llama, data, output, steps=12, resume=True) == message


def test_a_base_that_is_never_finite_is_named_after_five_steps(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_loss(monkeypatch, range(6))
    message = refusal(llama, data / "train.jsonl", tmp_path / "run", on_nan="skip")
    assert message.startswith("The base gives NaN or infinite numbers for ")


def test_a_gradient_that_is_not_finite_is_named_with_its_pair(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Run]
) -> None:
    output, last = tmp_path / "run", list[set[int]]()
    batch_of, micro_step = ForwardPath.batch, TrainStep.micro_step

    def batch(self: ForwardPath, pairs: Any, indices: Any, *rest: Any) -> Any:
        last.append({int(i) for i in indices})
        return batch_of(self, pairs, indices, *rest)

    def culprit() -> int:
        return int(runs[-1].plan.step(2)[1][0])

    def infinite(self: TrainStep, *arguments: Any) -> Any:
        metrics, gradients = micro_step(self, *arguments)
        if runs[-1].step == 2 and culprit() in last[-1]:
            gradients = tree_map_with_path(lambda name, g: g / 0 if name == DOWN else g, gradients)
        return metrics, gradients

    with monkeypatch.context() as patch:
        patch.setattr(ForwardPath, "batch", batch)
        patch.setattr(TrainStep, "micro_step", infinite)
        message = refusal(llama, data / "train.jsonl", output)
    location = runs[-1].train[culprit()].location
    assert message.startswith(
        f"The gradient is not finite at step 3 (pairs: {location}). The first part that is not "
        f"finite: the gradient of {DOWN}. Lower --learning-rate"
    )
    train(settings(llama, data / "train.jsonl", tmp_path / "sound", **SIX), [stop_after(2)])
    sound = tensors(tmp_path / "sound")
    assert tensors(output) == {n: v for n, v in sound.items() if n.startswith("checkpoints")}


def test_gradients_are_named_from_the_last_block_down() -> None:
    good, bad = mx.ones(2), mx.array([1.0, mx.nan])
    layers = [{"w": bad}, {"w": bad}, {"w": good}]
    assert (
        first_gradient({"layers": layers}) == "the gradient of layers.1.w and of 1 other parameter"
    )
    finite = {"layers": [{"w": mx.array([1e30])}]}
    assert first_gradient(finite) == "the norm of the gradient, whose parts are finite"


def test_a_device_that_failed_is_not_taken_for_a_pair(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed() -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")

    plant_loss(monkeypatch, {0})
    monkeypatch.setattr("orpo_mlx.training.step.mx.synchronize", failed)
    assert refusal(llama, data / "train.jsonl", tmp_path / "run").startswith("Metal ended the work")


@pytest.fixture
def pair() -> EncodedPair:
    parts = ([5, 6, 7, 8], [11, 12, 13], [21, 22, 23, 24])
    return EncodedPair(*(np.array(ids, np.int32) for ids in parts), "pairs.jsonl:1")


def part_of(model: nn.Module, pair: EncodedPair, beta: float = 0.1) -> str:
    return first_part(plain_path(model), pair, beta=beta, nll_on="response")


def first_block(model: Any, ids: np.ndarray) -> int:
    """The first block whose output is not finite, one after another by hand."""
    states = model.model.embed_tokens(mx.array(ids)[None])
    for number, layer in enumerate(model.layers):
        states = layer(states, "causal", None)
        if not np.isfinite(np.array(states)).all():
            return number
    return -1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_block_that_overflows_is_named(pair: EncodedPair, number: int) -> None:
    model: Any = tiny.build_model()[0]
    mlp = model.layers[number].mlp
    mlp.up_proj.weight = mlp.up_proj.weight * 1e25
    mlp.down_proj.weight = mlp.down_proj.weight * 1e25
    ids = np.concatenate([pair.prompt, pair.chosen])
    assert first_block(model, ids) == number
    model.freeze()
    assert part_of(model, pair) == f"the output of model.layers.{number} on the chosen response"


def test_a_trained_weight_that_is_not_finite_is_named(pair: EncodedPair) -> None:
    model: Any = tiny.build_model()[0]
    weight = model.layers[1].self_attn.v_proj.weight
    weight[0, 0] = mx.inf
    assert part_of(model, pair) == "the weight model.layers.1.self_attn.v_proj.weight"


def test_embeddings_and_logits_and_the_loss_are_named(pair: EncodedPair) -> None:
    model: Any = tiny.build_model()[0]
    weight, scale = model.model.embed_tokens.weight, model.model.norm.weight
    model.model.embed_tokens = apart = Apart(weight)
    model.freeze()
    assert part_of(model, pair).startswith("in the training pass alone")
    apart.weight = mx.where(mx.arange(len(weight))[:, None] == 22, mx.nan, weight)
    assert part_of(model, pair) == "the embeddings on the rejected response"
    apart.weight = weight
    model.model.norm.weight = scale * 3e38
    assert part_of(model, pair) == "the logits on the chosen response"
    model.model.norm.weight = scale * 1e36
    assert part_of(model, pair, beta=1e6) == "the odds-ratio part of the loss"


class Apart(nn.Module):
    """An embedding whose head does not see that it holds NaN."""

    def __init__(self, weight: mx.array):
        super().__init__()
        self.weight = weight

    def __call__(self, ids: mx.array) -> mx.array:
        return self.weight[ids]

    def as_linear(self, states: mx.array) -> mx.array:
        return states @ mx.nan_to_num(self.weight).T


def test_a_token_without_probability_is_named(
    pair: EncodedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny.build_model()[0]
    forward = type(model).__call__

    def masked(self: Any, ids: mx.array, *rest: Any, **named: Any) -> mx.array:
        logits = forward(self, ids, *rest, **named)
        return mx.where(mx.arange(logits.shape[-1]) == 23, -mx.inf, logits)

    monkeypatch.setattr(type(model), "__call__", masked)
    # The seventh: four of the prompt, then the third of the rejected response.
    assert part_of(model, pair) == (
        "the log-prob of token 7 of the prompt and its rejected response"
    )
