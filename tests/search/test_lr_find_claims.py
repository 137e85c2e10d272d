"""What lr-find promises of its suggestion, on a tiny llama, by whole runs at a grid of rates."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_mlx.search.lr_find import lr_find
from orpo_mlx.search.short_runs import ShortRuns
from orpo_mlx.training.run import Run
from tests import tiny
from tests.search.short import SMALL, save_varied, search_settings

pytestmark = [pytest.mark.long, pytest.mark.touchy]

SEEDS = range(3)
STEPS, BETA = 32, 0.1
# From here on an adapter's first matrix, which starts at about 1/6 a weight, moves by little, as in
# models of a usual width; only then does the product of alpha and rate determine the run.
ALPHA = 128.0
GRID = [5e-4 * 2**k for k in range(9)]


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def base(tmp_path: Path, seed: int) -> Path:
    return tiny.save_base(tmp_path / "base", seed=seed, **SMALL)


def save_data(folder: Path, seed: int, *, shuffled: bool = False) -> Path:
    folder.mkdir()
    save_varied(folder / "train.jsonl", 160, seed, shuffled=shuffled)
    save_varied(folder / "valid.jsonl", 32, seed + 100, shuffled=shuffled)
    return folder


def suggested(model: Path, data: Path, seed: int, alpha: float) -> float:
    config = search_settings(model, data, seed=seed, alpha=alpha, steps=STEPS)
    (search,) = lr_find(config)
    assert search.suggestion is not None
    return search.suggestion


def test_the_suggestion_is_near_the_best_of_a_grid_of_whole_runs(
    base: Path, tmp_path: Path, seed: int, prepared: Callable[..., Run]
) -> None:
    data = save_data(tmp_path / "data", seed)
    rate = suggested(base, data, seed, ALPHA)
    whole = ShortRuns(prepared(base, data, seed=seed, alpha=ALPHA, steps=STEPS), BETA, "Trying")
    losses = {r: whole.measure(r, STEPS).held_out_loss for r in GRID}
    best = min(losses, key=lambda r: losses[r])
    assert GRID[0] < best < GRID[-1]  # else the grid would not show the best
    near = best / 2 <= rate <= 2 * best
    assert near or whole.measure(rate, STEPS).held_out_loss <= 1.03 * losses[best]


def test_eight_times_the_alpha_takes_an_eighth_of_the_rate(
    base: Path, tmp_path: Path, seed: int
) -> None:
    data = save_data(tmp_path / "data", seed)
    ratio = suggested(base, data, seed, 8 * ALPHA) / suggested(base, data, seed, ALPHA)
    assert 1 / 16 <= ratio <= 1 / 4


def test_with_shuffled_labels_no_rate_helps(base: Path, tmp_path: Path, seed: int) -> None:
    data = save_data(tmp_path / "data", seed, shuffled=True)
    (search,) = lr_find(search_settings(base, data, seed=seed, alpha=ALPHA, steps=STEPS))
    assert search.suggestion is None
    assert search.reason.startswith("No rate helps to prefer the chosen answers: at ")
    # The answers are learned all the same.
    assert min(run.held_out_loss for run in search.runs) < 0.8 * search.before.held_out_loss
