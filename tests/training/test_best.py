"""Which validation is the best, when a run ends early, and whose weights it leaves."""

import math
import random
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest
import yaml

from orpo_mlx.config.train import BestMetric, TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Evaluated, Event, Saved
from orpo_mlx.files import remove
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training.loop import RunResult, train
from orpo_mlx.training.metrics.best import LOWER_IS_BETTER, best_of
from orpo_mlx.training.outputs import mean_metrics, pair_metrics
from tests.training.judged import LOSSES, plant_losses
from tests.training.runs import notices, rows, settings, stop_after, tensors

METRICS = get_args(BestMetric)


def metrics_of(chosen: float, rejected: float) -> dict[str, float]:
    """The metrics of one pair with these mean log-probs."""
    logps = mx.array([chosen]), mx.array([rejected])
    values = pair_metrics(orpo_loss(*logps, 0.1), *logps, 0.1)
    return mean_metrics({name: np.array(value) for name, value in values.items()}, "eval_")


def test_a_likelier_chosen_response_is_better_by_every_metric() -> None:
    worse, better = metrics_of(-3.0, -2.0), metrics_of(-1.0, -2.0)
    for first, second in ((worse, better), (better, worse)):
        pair = [{"step": 1, **first}, {"step": 2, **second}]
        for metric in METRICS:
            best = best_of(pair, metric)
            assert best is not None
            assert best.value == better[metric] != worse[metric]
    # The others have no direction: of the rejected responses' log-probs neither is better.
    assert better.keys() - {*METRICS} == {
        "eval_rewards/rejected",
        "eval_logps/rejected",
        "eval_saturated_pairs",
    }


@pytest.mark.parametrize("seed", range(50))
def test_the_best_is_that_of_a_search_by_hand(seed: int) -> None:
    draw = random.Random(seed)
    values = [0.0, 1.0, 2.0, 2.5, math.nan, math.inf, -math.inf]
    metric = draw.choice(METRICS)
    table = [(step, draw.choice(values)) for step in range(0, draw.randrange(1, 12) * 5, 5)]
    log = [{"step": step, metric: value, "eval_x": 0.0} for step, value in table]
    log = [row for each in log for row in (each, {"step": each["step"], "loss": 9.0})]
    expected = None
    for step, value in table:
        if step == 0 or not math.isfinite(value):
            continue
        lower = metric in ("eval_loss", "eval_nll_loss")
        if expected is None or (value < expected[1] if lower else value > expected[1]):
            expected = step, value
    best = best_of(log, metric)
    assert (best and best[:2]) == expected
    if best:
        assert best.since == len([step for step, _ in table if step > best.step])
        assert best.last == table[-1][1] or math.isnan(table[-1][1])
        assert best.start == (table[0][1] if math.isfinite(table[0][1]) else None)


def test_better_than_before_training_is_by_the_metrics_direction() -> None:
    for metric in METRICS:
        sign = 1 if metric in LOWER_IS_BETTER else -1
        for start, value, helped in ((2.0, 1.0, True), (1.0, 1.0, False), (1.0, 2.0, False)):
            best = best_of(
                [{"step": 0, metric: sign * start}, {"step": 3, metric: sign * value}], metric
            )
            assert best is not None
            assert best.helped(metric) is helped
        unknown = best_of([{"step": 3, metric: 1.0}], metric)
        assert unknown is not None and unknown.helped(metric)


def judged(llama: Path, data: Path, output: Path, *callbacks: Any, **more: Any) -> RunResult:
    given = {"steps": 8, "eval_every": 1, "eval_pairs": 2, "keep_checkpoints": "all"} | more
    return train(settings(llama, data, output, **given), callbacks)


def assert_ends_as(output: Path, whole: Path) -> None:
    """Every tensor of a whole run is there, bit for bit; a stop left a checkpoint more."""
    assert tensors(whole).items() <= tensors(output).items()


def adapter(folder: Path) -> bytes:
    return (folder / "adapters.safetensors").read_bytes()


def checkpoint(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:07}"


def adapter_step(output: Path) -> int:
    step: int = yaml.safe_load((output / "config.yaml").read_text())["adapter_step"]
    return step


def test_the_best_of_a_run_is_the_least_loss_in_its_metrics(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    result = judged(llama, data, output, learning_rate=0.3, final="best")
    trained = [row for row in rows(output) if "eval_loss" in row and row["step"]]
    least = min(row["eval_loss"] for row in trained)
    expected = next(row for row in trained if row["eval_loss"] == least)
    assert result.adapter_step == expected["step"] == adapter_step(output)
    assert result.metrics == {name: v for name, v in expected.items() if name != "step"}
    assert adapter(output) == adapter(checkpoint(output, expected["step"]))


def test_a_run_ends_after_so_many_validations_without_a_better_one(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output, events = tmp_path / "run", list[Event]()
    result = judged(llama, data, output, events.append, early_stop=3)
    assert (result.step, result.stopped, result.early_stopped) == (5, False, True)
    assert (result.adapter_step, result.metrics["eval_loss"]) == (2, 1.5)
    assert [e.step for e in events if isinstance(e, Evaluated)] == [0, 1, 2, 3, 4, 5]
    # Each that is the best so far, the equal fourth not; and the last, from which to go on.
    assert [e.step for e in events if isinstance(e, Saved)] == [1, 2, 5]
    assert adapter(output) == adapter(checkpoint(output, 2)) != adapter(checkpoint(output, 5))
    assert adapter_step(output) == 2
    assert notices(events)[-2:] == [
        "Ended early after step 5 of 8: 3 validations since step 2 had no better eval_loss. A "
        "higher --early-stop goes on: orpo-mlx train --resume --early-stop 4 --output "
        f"{output}",
        "The adapter is that of step 2, the best by eval_loss: 1.5000 (the last: 1.6000).",
    ]


def test_a_run_that_ended_early_ends_again_or_goes_on(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output, events = tmp_path / "run", list[Event]()
    judged(llama, data, output, stop_after(4), early_stop=3)
    assert adapter(output) == adapter(checkpoint(output, 4))
    first = judged(llama, data, output, resume=True)
    judged(llama, data, tmp_path / "whole", early_stop=3)
    assert rows(output) == rows(tmp_path / "whole")
    assert_ends_as(output, tmp_path / "whole")
    assert judged(llama, data, output, events.append, resume=True) == first
    assert any(text.startswith("Ended early after step 5 of 8") for text in notices(events))
    assert_ends_as(output, tmp_path / "whole")
    last = judged(llama, data, output, events.append, resume=True, early_stop=4)
    assert (last.step, last.early_stopped, last.adapter_step) == (8, False, 8)
    assert notices(events)[-1] == (
        "The adapter is that of step 8, the last, with eval_loss 1.1000; step 6 was better "
        "(1.0000), which --resume --final best takes."
    )
    judged(llama, data, tmp_path / "undisturbed")
    assert rows(output) == rows(tmp_path / "undisturbed")
    assert adapter(output) == adapter(tmp_path / "undisturbed")
    best = judged(llama, data, output, resume=True, early_stop=4, final="best")
    assert best.adapter_step == adapter_step(output) == 6
    assert adapter(output) == adapter(checkpoint(output, 6))


def test_the_best_checkpoint_stays_however_few_are_kept(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output = tmp_path / "run"
    judged(llama, data, output, keep_checkpoints=1, save_every=1)
    assert sorted((output / "checkpoints").iterdir()) == [checkpoint(output, n) for n in (6, 8)]
    best = judged(llama, data, output, resume=True, final="best")
    assert best.adapter_step == adapter_step(output) == 6
    assert adapter(output) == adapter(checkpoint(output, 6))


def test_the_model_of_a_full_run_is_the_best_one(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output = tmp_path / "run"
    more = {"fine_tune_type": "full", "rank": 16, "alpha": 32.0, "learning_rate": 1e-3}
    judged(llama, data, output, final="best", steps=4, **more)
    model: Any = mx.load(str(output / "model" / "model.safetensors"))
    best, last = (mx.load(str(checkpoint(output, n) / "adapters.safetensors")) for n in (2, 4))
    assert adapter(output) == adapter(checkpoint(output, 2))
    assert all(bytes(model[name]) == bytes(value) for name, value in best.items())
    assert any(bytes(model[name]) != bytes(value) for name, value in last.items())


def test_a_run_that_is_stopped_leaves_its_last_step(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output = tmp_path / "run"
    result = judged(llama, data, output, stop_after(4), final="best")
    assert (result.adapter_step, adapter_step(output)) == (4, 4)
    assert adapter(output) == adapter(checkpoint(output, 4))


def test_a_best_checkpoint_that_is_gone_leaves_the_last_step(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, LOSSES)
    output, events = tmp_path / "run", list[Event]()

    def lose(event: Event) -> None:
        events.append(event)
        if isinstance(event, Evaluated) and event.step == 8:
            remove(checkpoint(output, 6))

    assert judged(llama, data, output, lose, final="best").adapter_step == 8
    assert adapter(output) == adapter(checkpoint(output, 8))
    assert notices(events, warning=True)[-1].startswith("The weights of step 6, the best, cannot")


def test_a_run_that_training_made_worse_is_reported(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_losses(monkeypatch, {0: 1.0, 1: 1.25, 2: 1.125})
    events = list[Event]()
    judged(llama, data, tmp_path / "run", events.append, steps=2)
    assert notices(events, warning=True)[-1] == (
        "No validation was better than the one before training (eval_loss 1.0000, then 1.1250 at "
        "best)."
    )


def test_what_needs_held_out_pairs_is_refused_without_them(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, alone = tmp_path / "run", data / "train.jsonl"
    with pytest.raises(OrpoError) as caught:
        judged(llama, alone, output, early_stop=2, final="best")
    assert str(caught.value).startswith("--early-stop 2 and --final best: there are no held-out")
    assert "--valid-data" in str(caught.value) and "--valid-fraction" in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"early_stop": 2, "eval_every": 0}, "--early-stop: --eval-every 0 leaves no validations"),
        ({"beta": 0, "best_metric": "eval_rewards/margins"}, "is always 0 with --beta 0"),
        ({"best_metric": "eval_logps/rejected"}, "'eval_logps/chosen'"),
        ({"early_stop": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_by_which_nothing_can_be_judged_are_refused(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        TrainConfig.model_validate({"model": "m", "data": ["d"], "output": "o", **changes})
