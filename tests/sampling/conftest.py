"""Bases and adapters that answer, shared by tests of whole samplings."""

from pathlib import Path

import pytest

from orpo_mlx.sampling.sample import sample
from orpo_mlx.training.loop import train
from tests import tiny
from tests.sampling.samples import config_of
from tests.sampling.talkers import save_talker
from tests.training.runs import settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talker") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pairs = tiny.save_pairs(folder / "pairs.jsonl", 8)
    # the head, too: what moves a talker's words
    changes = {"learning_rate": 0.05, "target_modules": ["q_proj", "lm_head"]}
    return train(settings(base, pairs, folder / "mine", **changes)).output


@pytest.fixture(scope="module")
def answered(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of the base. Do not write there."""
    config = config_of(base, tmp_path_factory.mktemp("answered"))
    sample(config, follow_cut=False)
    return config.output
