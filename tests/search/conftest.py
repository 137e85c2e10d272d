"""One small base and its pairs, and runs prepared on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.events import Listeners
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training import loop
from orpo_mlx.training.run import Run
from tests import tiny
from tests.search.short import SMALL, save_varied, search_settings


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama. Do not write there."""
    return tiny.save_base(tmp_path_factory.mktemp("base") / "small", **SMALL)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl` of 60 pairs, `valid.jsonl` of 40. Do not write there."""
    folder = tmp_path_factory.mktemp("varied")
    save_varied(folder / "train.jsonl", 60, 0)
    save_varied(folder / "valid.jsonl", 40, 1)
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Run]:
    """A run before its first step, as lr-find prepares it."""

    def prepare(model: Path, data: Path, **changes: Any) -> Run:
        config = search_settings(model, data, **changes).train_config(tmp_path / "none")
        config = config.model_copy(update={"eval_pairs": 32})
        return loop.prepare_run(config, RULES, Listeners([]))[0]

    return prepare
