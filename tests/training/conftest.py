"""Pairs and a long run that several files of tests look at."""

from pathlib import Path

import pytest

from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics import Event
from tests import tiny
from tests.training.runs import LONG, settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs to train on and, beside them, five held-out ones. Do not write there."""
    folder = tmp_path_factory.mktemp("data")
    tiny.save_pairs(folder / "train.jsonl", 16)
    tiny.save_pairs(folder / "valid.jsonl", 5, start=100)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(
    llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """Twenty steps with dropout, in one go. Do not write there."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    events: list[Event] = []
    train(settings(llama, data, output, **LONG), [events.append])
    return output, events
