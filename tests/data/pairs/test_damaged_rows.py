"""Rows damaged at random: each becomes a pair, a problem or a counted drop, never a crash."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import Reading, pair_rows, read_row, recognize
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row
from orpo_mlx.errors import OrpoError
from tests.data.pairs.test_public_sets import FIXTURES, SETS

JUNK: list[Any] = [
    None, "", " ", "text", 7, -1.5, True, [], {}, [None], [7], ["text"], [[]], [{}],
    {"role": "user"}, {"content": "text"}, [{"role": "assistant", "content": ""}],
    [{"role": None, "content": None}], [{"from": "gpt", "value": None}], {"messages": None},
    {"messages": [7]}, [{"function": 7}], "[{", "\n\nHuman:", "<|im_start|>", ["a", 7],
]  # fmt: skip


def locations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside another."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from locations(value[key], (*path, key))


def damaged(row: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A row with one value replaced, removed, or next to a new one."""
    row = copy.deepcopy(row)
    *path, last = draw.choice(list(locations(row)))
    inner: Any = row
    for key in path:
        inner = inner[key]
    if draw.random() < 0.2:
        del inner[last]
    else:
        inner[last] = copy.deepcopy(draw.choice(JUNK))
    return row


def outcome(rows: list[Row], shown: list[Row]) -> tuple[int, ReadReport]:
    """How many pairs rows make, by the format of those shown, and what else becomes of them."""
    report = ReadReport()
    row_format = recognize(shown, Reading(), "f")
    if row_format.grouped:
        return len(list(pair_rows(rows, row_format, report))), report
    pairs = [pair for row in rows for pair in read_row(row, row_format, report)]
    for pair in pairs:
        assert pair.messages
        assert pair.chosen != pair.rejected
    return len(pairs), report


@pytest.mark.parametrize("name", SETS)
def test_no_damage_is_lost_or_ends_in_a_traceback(name: str) -> None:
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [Row(f"f:{n}", json.loads(line)) for n, line in enumerate(lines, start=1)]
    draw = random.Random(name)
    for _ in range(100):
        row = draw.choice(whole)
        bad = Row("f:99", damaged(row.values, draw))
        pairs, report = outcome([*whole, bad], whole)
        assert pairs + len(report.problems) + report.rows_left_out.total() > 0
        if name not in GROUPED:
            alone, report = outcome([bad], whole)
            assert alone or report.problems or report.rows_left_out, bad
        try:
            outcome([bad], [bad])
        except OrpoError as error:
            assert str(error).startswith(("f: ", "--"))


GROUPED = {name for name, read in SETS.items() if "of the same prompt" in read.sentence} | {
    "helpsteer2"
}
