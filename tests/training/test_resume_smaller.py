"""--resume with other micro-batches: the same steps, rounded otherwise; and kept from then on."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, MicroBatchDone, Started
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training.loop import train
from tests.training.runs import (
    curve,
    notices,
    settings,
    stop_after,
    tensors,
    train_by_rule_1,
)


def micro_batches(events: list[Event], step: int) -> list[tuple[int, int]]:
    parts = [event for event in events if isinstance(event, MicroBatchDone)]
    return [(part.done, part.total) for part in parts if part.step == step]


def test_a_resumed_run_takes_smaller_micro_batches_and_keeps_them(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, whole = tmp_path / "run", tmp_path / "whole"
    changes = {"steps": 6, "micro_batch_size": 4}
    train(settings(llama, data, whole, **changes))
    train(settings(llama, data, output, **changes), [stop_after(2)])
    first: list[Event] = []
    smaller = settings(llama, data, output, steps=6, resume=True, micro_batch_size=1)
    train(smaller, [first.append, stop_after(4)])
    [text] = [text for text in notices(first) if "--micro-batch-size" in text]
    assert text == (
        "--micro-batch-size 1 from here on (it was 4): the sums of a step are rounded in another "
        "order."
    )
    assert micro_batches(first, 3) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [event.micro_batch_size for event in first if isinstance(event, Started)] == [1]
    stored = yaml.safe_load((output / "config.yaml").read_text())
    assert (stored["micro_batch_size"], stored["rules"]) == (1, RULES)
    again: list[Event] = []
    train(TrainConfig.model_validate(stored | {"output": output, "resume": True}), [again.append])
    assert micro_batches(again, 5) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not [text for text in notices(again) if "--micro-batch-size" in text]
    # float32: sums of a step in another order, through six steps of AdamW.
    np.testing.assert_allclose(curve(output), curve(whole), rtol=1e-5)
    assert tensors(output) != tensors(whole)


def test_a_run_without_a_step_left_keeps_the_settings_that_it_was_trained_with(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, events = tmp_path / "run", list[Event]()
    train(settings(llama, data, output))
    before = (output / "config.yaml").read_bytes()
    smaller = settings(llama, data, output, resume=True, micro_batch_size=1, grad_checkpoint=True)
    train(smaller, [events.append])
    assert (output / "config.yaml").read_bytes() == before
    (output / "adapters.safetensors").unlink()  # its end is made again
    train(smaller, [events.append])
    assert (output / "config.yaml").read_bytes() == before
    assert not [text for text in notices(events) if "from here on" in text]


def test_with_dropout_it_is_reported_that_the_masks_are_others(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, events = tmp_path / "run", list[Event]()
    train(settings(llama, data, output, dropout=0.1), [stop_after(1)])
    train(settings(llama, data, output, resume=True, micro_batch_size=1), [events.append])
    assert any("and the masks of --dropout are others." in text for text in notices(events))


def test_checkpointing_from_a_resume_on_is_kept_and_changes_no_bit(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, whole = tmp_path / "run", tmp_path / "whole"
    train(settings(llama, data, whole))
    train(settings(llama, data, output), [stop_after(2)])
    events: list[Event] = []
    train(settings(llama, data, output, resume=True, grad_checkpoint=True), [events.append])
    assert yaml.safe_load((output / "config.yaml").read_text())["grad_checkpoint"] is True
    assert not [text for text in notices(events) if "rounded" in text]
    assert curve(output) == curve(whole)


def test_micro_batches_that_do_not_divide_a_step_are_refused(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output), [stop_after(1)])
    smaller = settings(llama, data, output, resume=True, batch_size=8, micro_batch_size=8)
    other = smaller.model_copy(update={"batch_size": 4})
    with pytest.raises(OrpoError, match="--micro-batch-size 8: must divide the run's --batch-size"):
        train(other)


def test_a_run_whose_steps_depend_on_micro_batches_keeps_its_own(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train_by_rule_1(settings(llama, data, output), stop_after(1))
    with pytest.raises(OrpoError, match="micro_batch_size: was 2, now 1"):
        train(settings(llama, data, output, resume=True, micro_batch_size=1))
