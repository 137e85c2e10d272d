"""Rows as they are recognized and read, for the tests of row formats."""

from typing import Any

import pytest

from orpo_mlx.data.pairs.load import PreferencePair, Reading, read_row, recognize
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row
from orpo_mlx.errors import OrpoError
from tests.data.rows import assistant, user

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
TURNS = {
    "chosen": "\n\nHuman: p\n\nAssistant: good",
    "rejected": "\n\nHuman: p\n\nAssistant: bad",
}
TALK = {"chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]}


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f:{number}", row) for number, row in enumerate(values, start=1)]


def sentence(*values: dict[str, Any], **reading: Any) -> str:
    return recognize(rows(*values), Reading(**reading), "f").sentence


def refusal(*values: dict[str, Any], **reading: Any) -> str:
    with pytest.raises(OrpoError) as error:
        recognize(rows(*values), Reading(**reading), "f")
    return str(error.value)


class ReadRows:
    """All that becomes of rows."""

    def __init__(self, *values: dict[str, Any], **reading: Any):
        self.report = ReadReport()
        row_format = recognize(rows(*values), Reading(**reading), "f")
        self.pairs = [
            pair for row in rows(*values) for pair in read_row(row, row_format, self.report)
        ]


def read(*values: dict[str, Any], **reading: Any) -> list[PreferencePair]:
    result = ReadRows(*values, **reading)
    assert (result.report.problems, result.report.rows_left_out) == ([], {})
    return result.pairs


def pair_texts(pair: PreferencePair) -> tuple[Any, str, str]:
    return pair.prompt, pair.chosen["content"], pair.rejected["content"]
