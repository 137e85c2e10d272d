"""What single values can mean, and which readings of a row its columns allow."""

from decimal import Decimal
from typing import Any

import pytest

from orpo_mlx.data.pairs.columns import number, truth
from orpo_mlx.data.pairs.row_format import Guess, Reading
from orpo_mlx.data.pairs.row_formats.ordered import guesses


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4, 4.0), (-1.5, -1.5), ("4", 4.0), (" 2.5 ", 2.5), ("-3", -3.0), ("N/A", None), ("", None),
        (None, None), (True, None), ("nan", None), (float("inf"), None), ([4], None),
        (Decimal("0.50"), 0.5), (Decimal("nan"), None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_such_and_from_text(value: Any, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True), (False, False), ("True", True), ("false", False), (1, True), ("0", False),
        (2, None), ("yes", None), (None, None), (1.0, None), ([], None),
    ],
)  # fmt: skip
def test_truth_is_read_as_such_and_from_words(value: Any, expected: bool | None) -> None:
    assert truth(value) is expected


def test_all_readings_of_a_row_are_found_the_surer_first() -> None:
    row = {
        "prompt": "p", "chosen": "a", "rejected": "b", "completion": "a", "label": True,
        "score": 3, "response_a": "a", "response_b": "b", "winner": "a",
        "answers": ["a", "b"], "scores": [1, 2],
    }  # fmt: skip
    names = [guess.name for guess in guesses(row, Reading())]
    assert names == ["prompt", "kto", "ab", "ranked", "scored"]


def test_mapped_columns_replace_the_usual_ones() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "q": "q", "good": "c"}
    assert guesses(row, Reading(columns={"prompt": "q", "chosen": "good"})) == [
        Guess("prompt", (("chosen", "good"), ("rejected", "rejected"), ("prompt", "q")))
    ]
    assert guesses(row, Reading(columns={"prompt": "none"})) == []
