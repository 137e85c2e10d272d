"""The losses that docs/objective.md shows for one pair follow from the log-probs that it shows."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.training.forward_path import arrays_of, plain_path
from orpo_mlx.training.outputs import pair_outputs

PAGE = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")
BETA = 0.1
Values = Sequence[float]


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(after: str) -> list[list[str]]:
    """The cells of the table whose header begins so."""
    lines = PAGE[PAGE.index(f"| {after} |") :].split("\n\n")[0].splitlines()
    return [cells_of(line) for line in lines[2:]]


def log_probs() -> list[list[float]]:
    """Of prompt, chosen and rejected, as the page prints them."""
    return [[float(value) for value in cells[1].split(",")] for cells in rows("tokens")]


def mean(values: Values) -> float:
    return sum(values) / len(values)


def odds_part(difference: float) -> float:
    return BETA * math.log1p(math.exp(-difference))


def log_odds(log_p: float) -> float:
    return log_p - math.log1p(-math.exp(log_p))


def odds_of_means(chosen: Values, rejected: Values) -> float:
    return odds_part(log_odds(mean(chosen)) - log_odds(mean(rejected)))


def paper(prompt: Values, chosen: Values, rejected: Values) -> float:
    return -mean(chosen) + odds_of_means(chosen, rejected)


def trl(prompt: Values, chosen: Values, rejected: Values) -> float:
    return -mean([*prompt, *chosen]) + odds_of_means(chosen, rejected)


def mlx_tune(prompt: Values, chosen: Values, rejected: Values) -> float:
    tokens = 1 + len(prompt) + len(chosen)
    whole, other = sum([*prompt, *chosen]), sum([*prompt, *rejected])
    return -whole / tokens + odds_part(whole - other)


def mlx_tune_alone(prompt: Values, chosen: Values, rejected: Values) -> float:
    tokens = 1 + len(prompt) + len(chosen)
    return -sum(chosen) / tokens + odds_part(sum(chosen) - sum(rejected))


def mlx_forge(prompt: Values, chosen: Values, rejected: Values) -> float:
    whole, other = sum([*prompt, *chosen]), sum([*prompt, *rejected])
    return -mean([*prompt, *chosen]) + odds_part(log_odds(whole) - log_odds(other))


def mlxsmith(prompt: Values, chosen: Values, rejected: Values) -> float:
    return -mean(chosen) + odds_part(sum(chosen) - sum(rejected))


FORMULAS = [paper, trl, mlx_tune, mlx_tune_alone, mlx_forge, mlxsmith]


@pytest.mark.parametrize("number", range(len(FORMULAS)), ids=lambda n: FORMULAS[n].__name__)
def test_each_loss_follows_from_the_log_probs_shown(number: int) -> None:
    formula: Callable[..., float] = FORMULAS[number]
    table = rows("tool")
    assert len(table) == len(FORMULAS)
    assert formula.__name__.split("_")[-1].replace("alone", "tune") in table[number][0].lower()
    assert table[number][3] == f"{formula(*log_probs()):.4f}"


def test_the_odds_part_is_shown_where_it_matters_which_answer_is_which() -> None:
    _, chosen, rejected = log_probs()
    sums, means = sum(chosen) - sum(rejected), mean(chosen) - mean(rejected)
    assert min(abs(sums), abs(means), abs(sums - means)) > 0.1


class Telling(nn.Module):
    """Gives token 0 the log-probs of a row, of two tokens in all."""

    def __init__(self, given: list[list[float]]):
        super().__init__()
        self.layers: list[nn.Module] = []
        length = max(map(len, given)) + 1
        padded = np.array([row + [-1.0] * (length - len(row)) for row in given])
        self._logits = np.stack([padded, np.log1p(-np.exp(padded))], axis=-1).astype(np.float32)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return mx.array(self._logits[:, : inputs.shape[1]])


@pytest.mark.parametrize(("nll_on", "row"), [("response", 0), ("prompt+response", 1)])
def test_ours_are_those_that_orpo_mlx_computes(nll_on: str, row: int) -> None:
    prompt, chosen, rejected = log_probs()
    lengths = (len(prompt) + 1, len(chosen), len(rejected))
    pair = EncodedPair(*(np.zeros(length, np.int32) for length in lengths), "")
    path = plain_path(Telling([prompt + chosen, prompt + rejected]))
    outputs = pair_outputs(path, arrays_of(path.batch([pair], [0], nll_on)), beta=BETA)
    cells = rows("tool")[row]
    assert "orpo-mlx" in cells[0]
    # Four decimals are shown.
    assert outputs.losses.loss.item() == pytest.approx(float(cells[3]), abs=6e-5)


def test_every_tool_is_cited_and_every_version_named_twice() -> None:
    tools = re.findall(r"([\w-]+ [\d.]+\d) \[(\d)\]", PAGE[: PAGE.index("## Why")])
    sources = dict(re.findall(r"^(\d)\. ([^,]+),", PAGE, re.MULTILINE))
    assert {number: name for name, number in tools} == sources
