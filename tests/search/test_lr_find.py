"""The search for a learning rate: what it costs, what it leaves alone, what it suggests."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpo_mlx.config.search import LrFindConfig
from orpo_mlx.config.train import LearnOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Listeners, Notice, Progress, StopRun
from orpo_mlx.search import short_runs
from orpo_mlx.search.lr_find import COARSE, FINE, HORIZON, climb, lr_find, next_rung, worth
from orpo_mlx.search.short_runs import Gain, ShortRun
from orpo_mlx.training.step import TrainStep
from tests.search.short import save_varied, search_settings

pytestmark = pytest.mark.touchy


class Counts(NamedTuple):
    """What was computed: for each validation its pairs, and how many steps."""

    steps: list[int]
    pairs: list[int]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    counted = Counts([], [])
    take, evaluate = TrainStep.take, short_runs.evaluate_encoded

    def counting_take(self: TrainStep, step: int) -> Any:
        counted.steps.append(step)
        return take(self, step)

    def counting_evaluate(path: Any, encoded: Any, **how: Any) -> Any:
        counted.pairs.append(len(encoded))
        return evaluate(path, encoded, **how)

    monkeypatch.setattr(TrainStep, "take", counting_take)
    monkeypatch.setattr(short_runs, "evaluate_encoded", counting_evaluate)
    return counted


def digest(folder: Path) -> dict[str, str]:
    """Every file of a folder by its content."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_search_stays_within_its_bounds_and_changes_no_file(
    small: Path, varied: Path, tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = digest(small), digest(varied)
    (search,) = lr_find(search_settings(small, varied))
    assert (digest(small), digest(varied)) == before
    assert list(tmp_path.iterdir()) == []
    assert len(counts.steps) == search.steps == sum(run.steps for run in search.runs) <= 60
    assert len(counts.pairs) == search.validations == len(search.runs) + 1 <= 12
    assert set(counts.pairs) == {32}
    best = max((r for r in search.runs if r.steps == 8), key=lambda r: -r.held_out_loss)
    assert search.best == best
    expected = best.learning_rate * (8 / 12) ** 0.32
    assert search.suggestion == pytest.approx(expected, rel=0.05)  # two digits
    assert search.reason.endswith(
        f"by (8/12)^{HORIZON}: {search.suggestion:g}, a short-run optimum."
    )


def test_the_bounds_hold_for_the_longest_search() -> None:
    assert COARSE.runs * COARSE.steps + FINE.runs * FINE.steps <= 60
    assert 1 + COARSE.runs + FINE.runs <= 12


class Curve:
    """Short runs whose loss falls most at an optimum: slower below it, steeply worse above it."""

    steps_of_run = 1000

    def __init__(self, optimum: float):
        self.report, self.optimum = Listeners([]), optimum

    def measure(self, rate: float, steps: int) -> ShortRun:
        x = math.log(rate / self.optimum)
        fall = 1 / (1 + x**2) if x < 0 else 1 - x**2
        fall = math.nan if x > 5 else fall
        return ShortRun(rate, steps, 2 - fall, 2 - fall, 1.0, 1.0, Gain(fall, 0.01), Gain(1, 0.01))


@pytest.mark.parametrize("exponent", range(-40, 55))
def test_the_climb_ends_next_to_the_optimum(exponent: int) -> None:
    """From 5e-5, for optima from a 1,500th of it to 19,000 times as much, by steps of a fifth."""
    curve: Any = Curve(5e-5 * 1.2**exponent)
    measured: list[ShortRun] = []
    coarse = climb(curve, COARSE, 5e-5, measured)
    best = climb(curve, FINE, coarse.learning_rate, measured)
    # The nearest rate of a grid a factor 2 apart, by what the curve gives for it.
    rates = [5e-5 * 2.0**k for k in range(-60, 60)]
    grid = max(rates, key=lambda rate: worth(curve.measure(rate, 8)))
    assert best.learning_rate == pytest.approx(grid)
    assert len(measured) <= COARSE.runs + FINE.runs


def test_rates_that_move_nothing_are_left_upwards() -> None:
    def still(rate: float) -> ShortRun:
        fall = Gain(-1e-6, 1e-7)
        return ShortRun(rate, 3, 2.0, 2.0, 0.5, 0.0, fall, fall)

    assert next_rung({0: still(1e-9)}) == 1
    assert next_rung({0: still(1e-9), 1: still(8e-9)._replace(fall=Gain(-1e-7, 1e-7))}) == 2
    worse = still(1e-3)._replace(fall=Gain(-1.0, 0.1), held_out_loss=3.0)
    assert next_rung({0: worse}) == -1
    assert next_rung({0: worse, -1: worse}) == -2


def test_rates_of_which_none_lowers_the_loss_are_not_suggested(
    small: Path, varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = short_runs.ShortRuns.measure

    def by_chance(self: short_runs.ShortRuns, rate: float, steps: int) -> ShortRun:
        return measure(self, rate, steps)._replace(fall=Gain(0.01, 0.006), held_out_loss=6.5)

    monkeypatch.setattr(short_runs.ShortRuns, "measure", by_chance)
    (search,) = lr_find(search_settings(small, varied))
    assert (search.suggestion, search.best) == (None, None)
    assert re.match(
        r"No rate helps: the held-out loss, \d\.\d{3} at the start, fell by 0\.010 at best, "
        r"at \S+, which is no more than chance \(standard error 0\.006\)\.",
        search.reason,
    )


def test_sft_rows_alone_are_not_judged_by_what_they_prefer(
    small: Path, varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = short_runs.ShortRuns.measure

    def indifferent(self: short_runs.ShortRuns, rate: float, steps: int) -> ShortRun:
        return measure(self, rate, steps)._replace(rise=Gain(0.01, 0.006))

    monkeypatch.setattr(short_runs.ShortRuns, "measure", indifferent)
    both = search_settings(small, varied, sft_data=[str(varied / "train.jsonl")])
    (alone,) = lr_find(both.model_copy(update={"data": []}))
    (next_to_pairs,) = lr_find(both)
    assert alone.suggestion and not next_to_pairs.suggestion


def test_sft_is_searched_next_to_it_on_request(small: Path, varied: Path, counts: Counts) -> None:
    preference, sft = lr_find(search_settings(small, varied, with_sft=True))
    assert (preference.beta, sft.beta) == (0.1, 0.0)
    assert preference.suggestion and sft.suggestion
    assert sft.before.held_out_loss < preference.before.held_out_loss
    assert sft.before.log_odds == preference.before.log_odds
    assert all(search.steps <= 60 and search.validations <= 12 for search in (preference, sft))


def test_too_few_held_out_pairs_are_refused_before_any_step(
    small: Path, varied: Path, counts: Counts
) -> None:
    with pytest.raises(OrpoError) as error:
        lr_find(search_settings(small, varied, valid_data=[], valid_fraction=0.05))
    assert "needs at least 8, better 32. Hold out more than --valid-fraction 0.05" in str(
        error.value
    )
    few = save_varied(varied.parent / "few.jsonl", 7, 3)
    with pytest.raises(OrpoError, match=r"Held-out pairs: 7; .* Give more of them with --valid-da"):
        lr_find(search_settings(small, varied, valid_data=[str(few)]))
    alone = search_settings(small, varied, sft_data=[str(few)], valid_data=[])
    with pytest.raises(OrpoError, match="SFT rows are never held out: give pairs with --valid-dat"):
        lr_find(alone.model_copy(update={"data": []}))
    assert counts == ([], [])


def stop_at(step: int) -> Callable[[Event], None]:
    def callback(event: Event) -> None:
        if isinstance(event, Progress) and event.stage.startswith("Trying") and event.done == step:
            raise StopRun

    return callback


def test_a_stop_gives_what_was_measured(small: Path, varied: Path) -> None:
    events: list[Event] = []
    (search,) = lr_find(search_settings(small, varied), [stop_at(7), events.append])
    assert search.stopped and search.suggestion is None
    assert [run.steps for run in search.runs] == [3, 3]
    assert search.reason == "Stopped before the search was over: no rate is suggested."
    lines = [e.text for e in events if isinstance(e, Notice) and "for 3 steps" in e.text]
    assert len(lines) == 2
    assert lr_find(search_settings(small, varied), [stop_at(2)]) == []


def test_every_option_of_the_run_to_come_reaches_it(small: Path, varied: Path) -> None:
    """The run is built of these settings alone, by the loop's own `prepare_run`."""
    changes: dict[str, Any] = {
        "optimizer": "lion",
        "schedule": "linear",
        "alpha": 3.0,
        "nll_on": "prompt+response",
        "target_modules": ["q_proj"],
        "template_args": {"tone": "kindly"},
        "warmup": 0.3,
    }
    config = search_settings(small, varied, **changes)
    run = config.train_config(Path("none"))
    assert {n: getattr(run, n) for n in LearnOptions.model_fields} == {
        n: getattr(config, n) for n in LearnOptions.model_fields
    }
    assert run.model_fields_set == (config.model_fields_set | {"output"})


def test_the_settings_file_of_a_run_is_accepted(small: Path, varied: Path) -> None:
    config = search_settings(small, varied).train_config(Path("none"))
    stored = json.loads(config.model_dump_json()) | {"rules": 3}
    again = LrFindConfig.model_validate(stored)
    assert again.train_config(Path("none")).model_dump() == config.model_dump()
