"""A short run is a run of train in small, and leaves the model as it was."""

import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.run_folder.folder import METRICS
from orpo_mlx.search.short_runs import Gain, ShortRuns, gain, share_of_warmup
from orpo_mlx.training.loop import train
from orpo_mlx.training.run import Run
from tests.search.short import search_settings
from tests.training.runs import rows

pytestmark = pytest.mark.touchy

RATE = 5e-3
Prepare = Callable[..., Run]


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "lion"])
def test_a_short_run_is_a_whole_run_of_so_many_steps(
    small: Path, varied: Path, tmp_path: Path, prepared: Prepare, kind: str
) -> None:
    """Schedule and warm-up shrink with it: two of eight steps, as three of twelve."""
    how = {"optimizer": kind, "dropout": 0.1, "weight_decay": 0.1}
    short = ShortRuns(prepared(small, varied, warmup=3, **how), 0.1, "Trying")
    got = short.measure(RATE, 8)
    config = search_settings(small, varied, warmup=2, learning_rate=RATE, **how | {"steps": 8})
    result = train(config.train_config(tmp_path / "run").model_copy(update={"eval_pairs": 32}))
    assert (tmp_path / "run" / METRICS).is_file()
    # The same arithmetic in the same order: every bit.
    assert got.held_out_loss == result.metrics["eval_loss"]
    assert got.accuracy == result.metrics["eval_rewards/accuracies"]
    assert got.log_odds == result.metrics["eval_log_odds_chosen"]
    assert got.train_loss == rows(tmp_path / "run")[-2]["loss"]
    before = rows(tmp_path / "run")[0]
    assert short.before.held_out_loss == before["eval_loss"]
    # A mean of differences and a difference of means, in float64.
    assert got.fall.mean == pytest.approx(before["eval_loss"] - got.held_out_loss, abs=1e-12)


def test_each_run_begins_at_the_same_start(small: Path, varied: Path, prepared: Prepare) -> None:
    run = prepared(small, varied)
    start = dict(tree_flatten(run.base.model.parameters()))
    short = ShortRuns(run, 0.1, "Trying")
    first = short.measure(RATE, 3)
    broken = short.measure(1e30, 3)
    assert math.isnan(broken.held_out_loss) and math.isnan(broken.fall.mean)
    assert short.measure(RATE, 3) == first
    after = dict(tree_flatten(run.base.model.parameters()))
    assert all(mx.array_equal(after[name], start[name]) for name in start)


def test_beta_is_the_searchs_own(small: Path, varied: Path, prepared: Prepare) -> None:
    run = prepared(small, varied, beta=0.5)
    with_odds, alone = (ShortRuns(run, beta, "Trying").measure(RATE, 3) for beta in (0.5, 0.0))
    assert with_odds.held_out_loss > alone.held_out_loss
    assert with_odds.log_odds > alone.log_odds


def test_a_gain_is_a_mean_and_its_standard_error() -> None:
    # Mean 2, deviations -1, 0, 1: a standard deviation of 1, over the root of 3.
    assert gain(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert Gain(2.1, 1.0).beyond_chance()
    assert not Gain(1.9, 1.0).beyond_chance()
    assert not Gain(-3.0, 1.0).beyond_chance()
    assert not Gain(math.nan, math.nan).beyond_chance()


def test_warm_up_is_a_share_of_the_run_however_it_is_given() -> None:
    assert [share_of_warmup(w, 40) for w in (0, 0.2, 10, 50)] == [0, 0.2, 0.25, 1.0]
