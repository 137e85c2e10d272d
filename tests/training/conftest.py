"""Pairs, a long run and the paths through a model that several files of tests look at."""

from pathlib import Path

import mlx.nn as nn
import pytest

from orpo_mlx.events import Event
from orpo_mlx.training.forward_path import ForwardPath
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.references import path_through
from tests.training.runs import LONG, settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs to train on and, next to them, five held-out ones. Do not write there."""
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


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny llama. Do not train it."""
    return tiny.build_model()[0]


@pytest.fixture(params=["fast", "rounded", "plain", "rows"])
def path(model: nn.Module, request: pytest.FixtureRequest) -> ForwardPath:
    """Every path that there is through the model."""
    return path_through(model, request.param)
