"""A sweep of real processes: one that dies, one that is interrupted, and what they leave."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.cli.main import run
from orpo_mlx.config.sweep import SweepConfig
from orpo_mlx.search import child
from orpo_mlx.search.sweep import sweep
from tests import tiny
from tests.alarm import no_hang
from tests.training.runs import curve

SEED = 2  # by which one of three trials draws 99 layers


@pytest.mark.touchy
@pytest.mark.long
def test_a_sweep_of_real_runs_goes_past_one_that_dies(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 16)
    output = tmp_path / "sweep"
    given = ["--model", llama, "--data", pairs, "--output", output, "--trials", 3, "--steps", 2]
    given += ["--batch-size", 4, "--valid-fraction", 0.3, "--max-seq-length", 128, "--json"]
    given += ["--search", "learning_rate=1e-4:1e-2:log", "--search", "num_layers=1,99"]
    given += ["--seed", SEED]
    assert run(["sweep", *map(str, given)]) == 0
    facts = json.loads(capsys.readouterr().out)
    states = {trial["number"]: trial["state"] for trial in facts["trials"]}
    losses = {}
    for trial in facts["trials"]:
        rows = output / f"trial-{trial['number']:03d}" / "metrics.jsonl"
        if trial["drawn"]["num_layers"] == 1:
            last = [json.loads(row) for row in rows.read_text().splitlines()][-1]
            losses[trial["number"]] = last["eval_loss"]
            assert (last["step"], trial["loss"]) == (2, last["eval_loss"])
        else:
            assert (trial["state"], trial["loss"]) == ("failed", None)
            assert trial["why"] == "--num-layers 99: the model has 3 blocks."
    assert sorted(states.values()) == ["complete", "complete", "failed"]
    best = min(losses, key=lambda number: losses[number])
    assert facts["best"]["number"] == best
    assert facts["command"] == (
        f"orpo-mlx train --config {output}/trial-{best:03d}.yaml --output FOLDER"
    )
    settings = yaml.safe_load((output / f"trial-{best:03d}.yaml").read_text())
    assert (settings["num_layers"], settings["steps"]) == (1, 2)
    assert settings["learning_rate"] == facts["best"]["drawn"]["learning_rate"]
    assert len(facts["plots"]) == 3


@pytest.mark.touchy
@pytest.mark.long
def test_an_interrupted_trial_ends_as_if_it_had_not_been(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"model": str(llama), "data": [str(tiny.save_pairs(tmp_path / "p.jsonl", 16))]}
    given |= {"steps": 10, "batch_size": 4, "valid_fraction": 0.3, "eval_every": 4, "trials": 1}
    given |= {"search": ["learning_rate=1e-3:1e-2:log"], "template_date": "2026-01-02"}

    def config(name: str) -> SweepConfig:
        return SweepConfig.model_validate({"output": tmp_path / name} | given)

    whole = sweep(config("whole"))

    def interrupt(watched: Any) -> bool:
        """Whatever the run has come to by then."""
        if (tmp_path / "out" / "trial-000" / "metrics.jsonl").exists():
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as patch, no_hang():
        patch.setattr("orpo_mlx.search.sweep._Watched.is_hopeless", interrupt)
        assert sweep(config("out")).stopped
    assert sweep(config("out")).trials == whole.trials
    curves = [curve(folder / "trial-000") for folder in (tmp_path / "whole", tmp_path / "out")]
    assert curves[0] == curves[1] and len(curves[0]) == 10


# A stand-in for Python: ends as its argument wants, or waits for SIGTERM and ends with 130, as
# train does.
STAND_IN = """#!/bin/sh
trap 'echo saved; exit 130' TERM
echo "started $3 $4 of $ORPO_MLX_PARENT"
case "$5" in
error) echo "Error: the rank is too large"; echo "  more of it"; exit 1;;
killed) kill -KILL $$;;
esac
while true; do sleep 0.01; done
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log of a stand-in for Python."""
    script = tmp_path / "python"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(script))
    with no_hang():
        yield tmp_path / "log"


@pytest.mark.touchy
@pytest.mark.parametrize(
    ("end", "status", "why"),
    [("error", 1, "the rank is too large"), ("killed", -9, "ended by SIGKILL")],
)
def test_a_child_that_dies_is_a_status_and_a_reason(
    stand_in: Path, end: str, status: int, why: str
) -> None:
    assert child.run_train([end], stand_in, lambda: False) == status
    assert child.why_it_ended(status, stand_in) == why
    assert stand_in.read_text().startswith(f"started orpo_mlx train of {os.getpid()}\n")


@pytest.mark.touchy
def test_a_hopeless_child_is_asked_to_save_and_end(stand_in: Path) -> None:
    assert child.run_train([], stand_in, stand_in.read_text) == 130
    assert stand_in.read_text().endswith("saved\n")


@pytest.mark.touchy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_sweep_lets_its_child_save(stand_in: Path, number: int) -> None:
    def interrupt() -> bool:
        if stand_in.read_text():
            signal.raise_signal(number)
        return False

    with pytest.raises(KeyboardInterrupt):
        child.run_train([], stand_in, interrupt)
    assert stand_in.read_text().endswith("saved\n")
