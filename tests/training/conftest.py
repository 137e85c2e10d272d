"""Pairs, runs and the paths through a model that several files of tests look at."""

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from orpo_mlx.events import Event
from orpo_mlx.training import loop
from orpo_mlx.training.forward_path import ForwardPath
from orpo_mlx.training.run import Run, build_run
from tests import tiny
from tests.training.references import path_through
from tests.training.runs import LONG, settings

SYSTEM = "you can check the router first then restart the light and call us later " * 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs to train on and, next to them, five held-out ones. Do not write there."""
    return tiny.save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def kindred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs with all that a tree can share: a system prompt, answers that begin alike."""
    file = tmp_path_factory.mktemp("kindred") / "pairs.jsonl"
    pairs = [tiny.toy_pair(number) for number in range(16)]
    for number, pair in enumerate(pairs):
        pair["prompt"] = SYSTEM + pair["prompt"]
        if number % 2:
            together = "sorry to hear that " * (number % 3 + 1)
            pair |= {k: together + pair[k] for k in ("chosen", "rejected")}
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs as they are made."""
    made: list[Run] = []

    def make(*arguments: Any, **keywords: Any) -> Run:
        made.append(build_run(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(loop, "build_run", make)
    return made


@pytest.fixture(scope="module")
def uninterrupted(
    llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """Twenty steps with dropout, in one go. Do not write there."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    events: list[Event] = []
    loop.train(settings(llama, data, output, **LONG), [events.append])
    return output, events


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny llama. Do not train it."""
    return tiny.build_model()[0]


@pytest.fixture(params=["fast", "rounded", "plain", "rows"])
def path(model: nn.Module, request: pytest.FixtureRequest) -> ForwardPath:
    """Every path that there is through the model."""
    return path_through(model, request.param)
