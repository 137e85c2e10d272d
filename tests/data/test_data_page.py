"""docs/data.md: every example is read as the shape under whose name it stands."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from orpo_mlx.data.columns import ROLES
from orpo_mlx.data.formats import Reading, pair_rows, read_row, recognise
from orpo_mlx.data.shapes import SHAPES
from orpo_mlx.data.sources import Problem, Row

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, re.M | re.S))
EXAMPLES = [
    (name, block)
    for name, text in SECTIONS.items()
    for block in re.findall(r"```json\n(.*?)```", text, re.S)
]


def test_the_page_shows_every_shape() -> None:
    assert tuple(SECTIONS) == SHAPES
    assert {name for name, _ in EXAMPLES} == set(SHAPES)


@pytest.mark.parametrize(("name", "block"), EXAMPLES, ids=lambda value: value[:20])
def test_an_example_is_read_as_its_shape(name: str, block: str) -> None:
    rows = [Row(f"f:{n}", json.loads(line)) for n, line in enumerate(block.splitlines(), start=1)]
    problems: list[Problem] = []
    drops: Counter[str] = Counter()
    shape = recognise(rows, Reading(), "f")
    pairs = list(pair_rows(rows, shape, problems, drops)) if shape.grouped else [
        pair for row in rows for pair in read_row(row, shape, problems, drops)
    ]  # fmt: skip
    assert (shape.name, problems, drops) == (name, [], {})
    (pair,) = pairs
    assert "Where is my bill?" in pair.messages[-1]["content"]
    end = "<|im_end|>" if pair.raw else ""
    assert pair.chosen["content"] == f"Under Orders, then Bills.{end}"
    assert pair.rejected["content"] == f"No idea.{end}"


def test_the_page_names_all_that_columns_can_be_called() -> None:
    named = re.findall(r"`(\w+)`", PAGE.rpartition("## Columns by hand")[2])
    assert set(ROLES) <= set(named)
