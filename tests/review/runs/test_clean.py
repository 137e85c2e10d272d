"""What is removed, and what never is."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.review.runs.clean import CleanPlan, Removable, clean, plan_clean
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.training.loop import train
from tests.review.runs.folders import ROWS, make_run, row
from tests.training.runs import settings, stop_after, tensors


def go(plan: CleanPlan) -> list[str]:
    """The names of what was removed."""
    removed: list[Removable] = []
    clean(plan, lambda event: None, removed.append)
    return [item.path.name for item in removed]


def left(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name != ".lock")


def test_all_but_the_last_and_the_best_checkpoint_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 15, 20])
    (run / "trunk").mkdir()
    (run / "trunk" / "states").write_bytes(b"x" * 50)
    stray = run / ".metrics.jsonl.abc"
    stray.mkdir()
    half = run / "checkpoints" / ".step-0000007.removed"
    half.mkdir()
    plan = plan_clean([run])
    assert plan.size_bytes == 2050
    names = ["step-0000005", "step-0000015", "trunk", stray.name, half.name]
    assert sorted(go(plan)) == sorted(names)
    checkpoints = [f"checkpoints/step-{n:07d}" for n in (10, 20)]
    files = [f"{folder}/weights.safetensors" for folder in checkpoints]
    assert left(run) == sorted(
        ["checkpoints", *checkpoints, *files, "config.yaml", "metrics.jsonl"]
    )
    assert plan_clean([run]) == CleanPlan({}, [])


def test_the_best_is_that_of_the_runs_own_metric(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 15, 20])
    with (run / "config.yaml").open("a") as file:
        file.write("best_metric: eval_logps/rejected\n")  # higher is better: also that at 10
    assert go(plan_clean([run])) == ["step-0000005", "step-0000015"]
    worse = make_run(tmp_path / "worse", [row(s, 4.0) for s in (1, 2)], [1, 2])
    assert go(plan_clean([worse])) == ["step-0000001"]  # never validated: the last alone


def test_a_run_in_use_is_left_alone_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 20])
    before = left(run)
    with locked(run, lambda event: None):
        plan = plan_clean([run])
        assert plan.removable == {}
        assert "is left alone" in plan.notes[0] and "in use by process" in plan.notes[0]
    plan = plan_clean([run])
    with locked(run, lambda event: None), pytest.raises(OrpoError, match="in use"):
        go(plan)  # it was resumed while somebody was asked
    assert left(run) == before


def test_what_became_the_best_or_the_last_meanwhile_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 15, 20])
    plan = plan_clean([run])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(15, 1.0, held_out=True)) + "\n")
    assert go(plan) == ["step-0000005"]


def test_nothing_of_a_damaged_run_is_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, [5, 10, 20])
    (run / "config.yaml").write_text("[")
    before = left(run)
    plan = plan_clean([run])
    assert plan.removable == {} and "config.yaml" in plan.notes[0]
    assert left(run) == before


@pytest.mark.touchy
def test_a_stopped_run_that_was_cleaned_is_resumed_bit_for_bit(
    llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"save_every": 1, "num_layers": 1, "steps": 6, "keep_checkpoints": "all"}
    config = settings(llama, pairs_file, tmp_path / "run", **more)
    whole = config.model_copy(update={"output": tmp_path / "whole"})
    train(whole)
    train(config, [stop_after(4)])
    removed = go(plan_clean([config.output]))
    assert [name for name in removed if "step" in name] == [f"step-{n:07d}" for n in (1, 2, 3)]
    events: list[Event] = []
    train(config.model_copy(update={"resume": True}), [events.append])
    there = tensors(config.output)
    assert there == {name: value for name, value in tensors(whole.output).items() if name in there}
    assert {"adapters.safetensors", "checkpoints/step-0000006/optimizer.safetensors"} <= {
        name.split(":")[0] for name in there
    }
