"""A sweep's trials: drawn by optuna, run apart from each other, compared, pruned, gone on with."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from orpo_mlx.config.sweep import SweepConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.search import study
from orpo_mlx.search import sweep as sweeping
from orpo_mlx.search.sweep import Sweep, compared_loss, sweep
from tests.training.runs import notices

SEARCH = ["learning_rate=1e-4:1e-2:log", "rank=2,4,8"]
Child = Callable[[Path, dict[str, Any]], int]  # run folder, its settings -> status


def config(output: Path, **changes: Any) -> SweepConfig:
    values = {"model": "base", "data": ["pairs.jsonl"], "output": output, "trials": 6}
    return SweepConfig.model_validate(values | {"search": SEARCH} | changes)


def validation(step: int, nll: float, ratio: float, beta: float) -> dict[str, float]:
    losses = {"eval_nll_loss": nll, "eval_log_odds_ratio": ratio}
    return {"step": step, "eval_loss": nll - beta * ratio, **losses}


def log_rows(folder: Path, *rows: dict[str, float]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def loss_at(values: dict[str, Any]) -> float:
    """Best near 1e-3, whatever the rank."""
    return 2 + abs(math.log10(values["learning_rate"]) + 3) + values["rank"] / 1000


def good_child(folder: Path, values: dict[str, Any]) -> int:
    log_rows(folder, validation(0, 9, -1, 0.1), validation(4, loss_at(values), -1, 0.1))
    return 0


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Child], list[list[str]]]]:
    """Puts a function in the place of the process that trains; gives the arguments of each."""
    calls: list[list[str]] = []

    def use(train: Child) -> list[list[str]]:
        def run_train(arguments: Sequence[str], log: Path, ask: Callable[[], bool]) -> int:
            calls.append([*arguments])
            settings = yaml.safe_load(Path(arguments[1]).read_text())
            log.touch()
            return train(Path(arguments[3]), settings)

        monkeypatch.setattr(sweeping, "run_train", run_train)
        return calls

    monkeypatch.setattr(sweeping, "save_plots", lambda study, folder: [])
    yield use


def draws(result: Sweep) -> list[dict[str, Any]]:
    return [trial.drawn for trial in result.trials]


def test_the_best_trial_has_the_lowest_held_out_loss(children: Any, tmp_path: Path) -> None:
    calls = children(good_child)
    result = sweep(config(tmp_path / "out"))
    losses = [loss_at(trial.drawn) for trial in result.trials]
    assert [trial.loss for trial in result.trials] == pytest.approx([x + 0.1 for x in losses])
    assert result.best is not None and result.best.number == losses.index(min(losses))
    assert [words[:4] for words in calls] == [
        ["--config", f"{tmp_path}/out/{n}.yaml", "--output", f"{tmp_path}/out/{n}"]
        for n in (f"trial-{i:03d}" for i in range(6))
    ]
    assert len({trial.drawn["learning_rate"] for trial in result.trials}) == 6
    assert {type(trial.drawn["rank"]) for trial in result.trials} == {int}


def test_the_draws_follow_from_the_seed_wherever_the_sweep_was_stopped(
    children: Any, tmp_path: Path
) -> None:
    children(good_child)
    whole = sweep(config(tmp_path / "whole"))
    assert draws(sweep(config(tmp_path / "other", seed=1))) != draws(whole)

    def stopped(folder: Path, values: dict[str, Any]) -> int:
        if folder.name == "trial-002":
            raise KeyboardInterrupt
        return good_child(folder, values)

    children(stopped)
    first = sweep(config(tmp_path / "out"))
    assert (first.stopped, [trial.number for trial in first.trials]) == (True, [0, 1])
    calls = children(good_child)
    before = len(calls)
    events: list[Event] = []
    again = sweep(config(tmp_path / "out"), events.append)
    assert (again.trials, again.stopped) == (whole.trials, False)
    assert [Path(words[3]).name for words in calls[before:]] == [
        f"trial-{i:03d}" for i in range(2, 6)
    ]
    assert notices(events)[0] == "2 trials are over, 4 to go."
    assert sweep(config(tmp_path / "out", trials=7)).trials[:6] == whole.trials


def test_a_trial_that_was_cut_short_goes_on_from_its_checkpoint(
    children: Any, tmp_path: Path
) -> None:
    def killed(folder: Path, values: dict[str, Any]) -> int:
        if folder.name == "trial-001":
            folder.mkdir()
            (folder / "checkpoints" / "step-0000002").mkdir(parents=True)
        if folder.name == "trial-002":
            folder.mkdir()
        raise KeyboardInterrupt if folder.name != "trial-000" else RuntimeError("as by SIGKILL")

    calls = children(killed)
    with pytest.raises(RuntimeError):
        sweep(config(tmp_path, trials=3))
    children(good_child)
    (tmp_path / "trial-001" / "checkpoints" / "step-0000002").mkdir(parents=True)
    (tmp_path / "trial-002").mkdir()
    calls.clear()
    result = sweep(config(tmp_path, trials=3))
    assert [words[4:] for words in calls] == [[], ["--resume"], ["--overwrite"]]
    assert [trial.state for trial in result.trials] == ["complete"] * 3


def test_trials_are_compared_at_one_beta(children: Any, tmp_path: Path) -> None:
    """With a lower beta the loss itself is lower, whatever was learnt."""

    def trained(folder: Path, values: dict[str, Any]) -> int:
        nll = 2 - values["beta"]  # the higher the better
        log_rows(folder, validation(4, nll, -2, values["beta"]))
        return 0

    children(trained)
    search = ["beta=0.05,0.5,1.0"]
    result = sweep(config(tmp_path, search=search, trials=8, beta=0.2))
    for trial in result.trials:
        assert trial.loss == pytest.approx(2 - trial.drawn["beta"] + 0.2 * 2)
    assert result.best and result.best.drawn["beta"] == max(t.drawn["beta"] for t in result.trials)
    row = validation(4, 1.5, -0.75, 0.2)
    assert compared_loss(row, 0.2, 0.2) == row["eval_loss"] == pytest.approx(1.65)
    assert compared_loss(row, 0.2, 0.4) == pytest.approx(1.8)


def test_a_trial_worse_than_the_median_is_ended_while_it_trains_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, list[bool]] = {}

    def run_train(arguments: Sequence[str], log: Path, ask: Callable[[], bool]) -> int:
        folder = Path(arguments[3])
        number = int(folder.name[-3:])
        answers = asked.setdefault(folder.name, [ask()])
        log_rows(folder, validation(2, 9.0 if number >= 2 else 2 + number, -1, 0.1))
        answers.append(ask())  # trial 4 ends here by itself
        if number != 4:
            log_rows(folder, {"step": 3, "loss": 1.0})
            answers.append(ask())
        log.write_text("Stopped\n")
        return 130 if answers[-1] else 0

    monkeypatch.setattr(sweeping, "run_train", run_train)
    monkeypatch.setattr(study, "STARTUP_TRIALS", 2)
    monkeypatch.setattr(sweeping, "save_plots", lambda study, folder: [])
    events: list[Event] = []
    result = sweep(config(tmp_path, trials=5), events.append)
    states = ["complete", "complete", "pruned", "pruned", "complete"]
    assert [trial.state for trial in result.trials] == states
    assert asked["trial-002"] == [False, False, True]
    assert asked["trial-004"] == [False, False]
    assert "trial-002: pruned" in notices(events)
    kept = optuna.load_study(study_name="sweep", storage=journal(tmp_path)).trials
    assert [trial.intermediate_values for trial in kept] == [
        {2: pytest.approx(value + 0.1)} for value in (2, 3, 9, 9, 9)
    ]


def journal(folder: Path) -> optuna.storages.JournalStorage:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.storages.JournalStorage(backend)


def test_without_held_out_pairs_there_is_nothing_to_compare(children: Any, tmp_path: Path) -> None:
    children(lambda folder, values: log_rows(folder, {"step": 1, "loss": 1.0}) or 0)
    with pytest.raises(OrpoError, match="no held-out loss to be compared by: give pairs with"):
        sweep(config(tmp_path))


def test_a_trial_without_held_out_pairs_is_ended_at_its_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bool] = []

    def run_train(arguments: Sequence[str], log: Path, should_end: Callable[[], bool]) -> int:
        folder = Path(arguments[3])
        asked.append(should_end())
        log_rows(folder, {"step": 0, "train_pairs": 0, "sft_rows": 8})
        asked.append(should_end())
        log_rows(folder, {"step": 1, "loss": 1.0})
        asked.append(should_end())
        return 0

    monkeypatch.setattr(sweeping, "run_train", run_train)
    with pytest.raises(OrpoError, match="no held-out loss to be compared by: give pairs with"):
        sweep(config(tmp_path))
    assert asked == [False, False]


def test_if_every_trial_fails_the_reasons_are_the_error(children: Any, tmp_path: Path) -> None:
    children(lambda folder, values: -signal.SIGKILL)
    with pytest.raises(OrpoError) as caught:
        sweep(config(tmp_path, trials=2))
    assert str(caught.value).splitlines() == [
        "No trial came to its end:",
        "  trial-000: ended by SIGKILL",
        "  trial-001: ended by SIGKILL",
        "Begin again with --overwrite.",
    ]


def test_a_sweep_ends_when_its_first_three_trials_fail_by_one_error(
    children: Any, tmp_path: Path
) -> None:
    def failing(folder: Path, values: dict[str, Any]) -> int:
        Path(f"{folder}.log").write_text("Error: --model base: there is no such folder.\n")
        return 1

    calls = children(failing)
    with pytest.raises(OrpoError) as caught:
        sweep(config(tmp_path))
    assert str(caught.value) == (
        "Each of the first 3 trials failed: --model base: there is no such folder. What they "
        f"printed is in {tmp_path}. Begin again with --overwrite."
    )
    assert len(calls) == 3


def test_a_sweep_goes_on_past_three_trials_that_fail_otherwise(
    children: Any, tmp_path: Path
) -> None:
    def failing(folder: Path, values: dict[str, Any]) -> int:
        number = int(folder.name[-3:])
        if number >= 3:
            return good_child(folder, values)
        Path(f"{folder}.log").write_text(f"Error: rank {number} does not fit.\n")
        return 1

    assert len(children(failing)) == 0
    losses = [trial.loss for trial in sweep(config(tmp_path)).trials]
    assert [loss is None for loss in losses] == [True] * 3 + [False] * 3


def test_other_settings_are_another_sweep(children: Any, tmp_path: Path) -> None:
    children(good_child)
    output = tmp_path / "out"
    sweep(config(output))
    with pytest.raises(OrpoError) as caught:
        sweep(config(output, beta=0.3, search=["rank=2,4"]))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{output} holds a sweep with other settings:"
    assert lines[1] == "  beta: was 0.1, now 0.3"
    assert lines[-1].startswith("Go on with its own, replace it with --overwrite")
    (output / "mine.txt").write_text("mine")
    replaced = sweep(config(output, search=["rank=2,4"], overwrite=True, trials=1))
    assert len(replaced.trials) == 1
    assert {p.name for p in output.iterdir() if p.suffix != ".journal"} == {
        ".lock",
        "mine.txt",
        "sweep.yaml",
        "trial-000",
        "trial-000.yaml",
        "trial-000.log",
    }


def test_a_folder_of_something_else_is_left_alone(children: Any, tmp_path: Path) -> None:
    children(good_child)
    (tmp_path / "mine.txt").write_text("mine")
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(OrpoError, match=r"holds other files \(mine.txt\) and no sweep"):
            sweep(config(tmp_path, **changes))
    with pytest.raises(OrpoError, match="--resume: there is no sweep at"):
        sweep(config(tmp_path, resume=True))


def test_a_second_sweep_in_one_folder_is_refused(children: Any, tmp_path: Path) -> None:
    def second(folder: Path, values: dict[str, Any]) -> int:
        with pytest.raises(OrpoError, match=f"{tmp_path} is in use by process {os.getpid()} on"):
            sweep(config(tmp_path, trials=1))
        return good_child(folder, values)

    children(second)
    assert len(sweep(config(tmp_path, trials=1)).trials) == 1


def test_a_trial_that_goes_on_without_its_sweep_is_waited_for(
    children: Any, tmp_path: Path
) -> None:
    """As after a SIGKILL of the sweep alone: the run's own process holds its folder."""
    children(good_child)
    sweep(config(tmp_path, trials=1))
    with locked(tmp_path / "trial-001", lambda event: None):
        for changes in ({"trials": 2}, {"trials": 1, "overwrite": True}):
            with pytest.raises(OrpoError, match=f"{tmp_path}/trial-001 is in use by process"):
                sweep(config(tmp_path, **changes))
    result = sweep(config(tmp_path, trials=2))
    assert [trial.state for trial in result.trials] == ["complete"] * 2


def test_the_loss_is_that_of_the_adapter_that_a_run_kept(children: Any, tmp_path: Path) -> None:
    def kept_the_best(folder: Path, values: dict[str, Any]) -> int:
        log_rows(folder, *(validation(n, loss, 0, 0.1) for n, loss in ((2, 3.0), (4, 5.0))))
        (folder / "config.yaml").write_text("adapter_step: 2\n")
        return 0

    children(kept_the_best)
    (trial,) = sweep(config(tmp_path, trials=1)).trials
    assert trial.loss == 3.0


def test_a_damaged_journal_is_an_error_that_names_it(children: Any, tmp_path: Path) -> None:
    children(good_child)
    sweep(config(tmp_path, trials=1))
    file = tmp_path / "study.journal"
    file.write_text("not a journal\n" + file.read_text())
    with pytest.raises(OrpoError, match=r"study.journal is damaged \(JSONDecodeError"):
        sweep(config(tmp_path, trials=2))


def test_plots_are_written_without_a_warning(children: Any, tmp_path: Path) -> None:
    children(good_child)
    sweep(config(tmp_path, trials=3))
    files = study.save_plots(study.open_study(tmp_path, 0, 0), tmp_path / "plots")
    assert [file.name for file in files] == ["history.png", "slice.png", "intermediate.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
