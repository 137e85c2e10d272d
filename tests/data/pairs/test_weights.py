"""The weight of a row: which values are one, which are refused, and what has none."""

import math
from typing import Any

import pytest

from tests.data.pairs.recognized import PAIR, TURNS, ReadRows, read, sentence
from tests.data.pairs.test_pairing import ReadRows as ReadGrouped

CONVERSATION = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}]


@pytest.mark.parametrize(
    ("value", "weight"),
    [(2, 2.0), (0, 0.0), (0.25, 0.25), ("0.5", 0.5), (" 3 ", 3.0), (None, 1.0), ("", 1.0)],
)
@pytest.mark.parametrize("row", [PAIR, TURNS])
def test_a_weight_is_a_number_or_its_text_and_1_where_there_is_none(
    row: dict[str, Any], value: Any, weight: float
) -> None:
    pairs = read(row | {"weight": value}, row)
    assert [pair.weight for pair in pairs] == [weight, 1.0]
    assert all("weight" not in pair.labels for pair in pairs)


@pytest.mark.parametrize(
    "value", [-0.5, "heavy", True, math.nan, math.inf, "inf", 1e39, 10**400, [1], {"w": 1}]
)
def test_another_value_is_a_fault_next_to_the_others_of_its_row(value: Any) -> None:
    result = ReadRows(PAIR | {"weight": value, "chosen": None}, PAIR)
    assert [pair.weight for pair in result.pairs] == [1.0]
    assert [problem.location for problem in result.report.problems] == ["f:1"] * 2
    missing, fault = (problem.fault for problem in result.report.problems)
    assert missing == 'column "chosen" is null'
    assert fault == (
        f'"weight" must be a number, 0 or more and finite (found {value!r}; rename the column if '
        "it is not how often the row's loss counts)"
    )


def test_a_row_that_is_refused_for_its_weight_is_not_counted_as_left_out_too() -> None:
    row = PAIR | {"weight": -1, "status": "tie"}
    result = ReadRows(row, PAIR | {"status": "unchanged"})
    assert [len(result.report.problems), result.report.rows_left_out] == [1, {}]


def test_the_column_may_have_another_name_which_is_reported() -> None:
    row = PAIR | {"importance": 2, "weight": 7}
    assert sentence(row) == 'texts, explicit prompt; weights in "weight"'
    named = {"weight": "importance"}
    assert sentence(row, columns=named) == 'texts, explicit prompt; weights in "importance"'
    assert [pair.weight for pair in read(row, columns=named)] == [2.0]
    assert sentence(PAIR) == "texts, explicit prompt"


def test_every_pair_of_a_row_has_its_weight_and_scores_called_so_are_scores() -> None:
    answers = [{"answer": text, "score": n} for n, text in enumerate("abc")]
    row = {"prompt": "p", "answers": answers, "weight": 3}
    assert [pair.weight for pair in read(row, min_margin=1)] == [3.0] * 3
    scored = [{"prompt": "p", "response": text, "weight": n} for n, text in enumerate("ab")]
    (pair,) = ReadGrouped(*scored, columns={"score": "weight"}).pairs
    assert (pair.weight, pair.chosen["content"]) == (1.0, "b")


def test_two_rows_that_make_a_pair_have_one_weight() -> None:
    good = {"prompt": "p", "completion": "good", "label": True}
    bad = {"prompt": "p", "completion": "bad", "label": False}
    (pair,) = ReadGrouped(good | {"weight": 2}, bad | {"weight": 2}).pairs
    assert pair.weight == 2.0
    result = ReadGrouped(good | {"weight": 2}, bad)
    assert result.pairs == []
    assert [str(problem) for problem in result.report.problems] == [
        "f:1: makes a pair with f:2: weights 2 and 1, not one"
    ]
