"""What a sweep may search, and what of a draw reaches train."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orpo_mlx.config.sweep import (
    DEFAULT_SEARCH,
    SEARCHABLE,
    Choices,
    NumberRange,
    SweepConfig,
    settings_of_trial,
)
from orpo_mlx.config.train import TrainConfig

NEEDED: dict[str, Any] = {"model": "base", "data": ["pairs.jsonl"], "output": "sweep"}


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        SweepConfig.model_validate(NEEDED | values)
    return str(caught.value)


def test_without_a_search_rate_and_beta_are_searched() -> None:
    assert SweepConfig.model_validate(NEEDED).space == {
        "learning_rate": NumberRange(1e-5, 5e-4, log=True, whole=False),
        "beta": NumberRange(0.05, 0.5, log=True, whole=False),
    }
    assert len(DEFAULT_SEARCH) == 2


def test_values_are_read_as_train_reads_them() -> None:
    given = ["rank=8, 16,32", "batch-size=2:64:log", "rslora=true,false", "schedule=cosine,linear"]
    assert SweepConfig.model_validate(NEEDED | {"search": given}).space == {
        "rank": Choices((8, 16, 32)),
        "batch_size": NumberRange(2, 64, log=True, whole=True),
        "rslora": Choices((True, False)),
        "schedule": Choices(("cosine", "linear")),
    }


@pytest.mark.parametrize(
    ("search", "why"),
    [
        ("rank", "must be NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C"),
        ("rank=", "must be NAME=LOW:HIGH"),
        ("seed=1,2", "seed cannot be searched (allowed: learning_rate, beta, rank"),
        ("nll_on=response,prompt+response", "nll_on cannot be searched"),
        ("rank=0,8", "0: input should be greater than or equal to 1"),
        ("rank=2:many", "many: input should be a valid integer"),
        ("rank=8:4", "LOW must be less than HIGH"),
        ("dropout=0:0.5:log", "on a logarithmic scale, LOW must be more than 0"),
        ("rank=8:16:square", "after LOW:HIGH, only :log is known"),
        ("schedule=cosine:linear", "LOW and HIGH must be numbers"),
        ("batch_size=4,6", "6: --micro-batch-size 4: must divide --batch-size 6"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(search: str, why: str) -> None:
    batch = {"batch_size": 8, "micro_batch_size": 4}
    assert f"--search {search}: {why}" in refusal(search=[search], **batch)


def test_all_that_is_wrong_is_named_at_once() -> None:
    text = refusal(search=["rank=0,1", "nothing", "beta=1,2", "beta=3,4"])
    for part in ("--search rank=0,1:", "--search nothing:", "--search beta: is given twice"):
        assert part in text


def test_a_draw_wins_and_steps_replace_epochs() -> None:
    values = {"rank": 4, "epochs": 2.0, "trials": 3, "search": ["rank=8,16"], "alpha": None}
    assert settings_of_trial(values, {"rank": 8}) == {"rank": 8, "epochs": 2.0}
    assert settings_of_trial(values, {"steps": 7}) == {"rank": 4, "steps": 7}
    given = SweepConfig.model_validate(NEEDED | {"epochs": 2.0, "search": ["steps=5,7"]})
    assert given.space == {"steps": Choices((5, 7))}


def test_what_may_be_searched_are_options_of_train() -> None:
    assert {*SEARCHABLE} < TrainConfig.model_fields.keys()
    assert SweepConfig.model_validate(NEEDED).output == Path("sweep")
