"""docs/reliability.md: every fault names a test that exists, and state.json is as it is shown."""

import json
import re
from pathlib import Path
from typing import get_args

from orpo_mlx.run_folder.state import Condition, RunState

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the rows below a heading, without the head and its line."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    lines = re.findall(r"^\| (.*) \|$", section, re.M)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def test_every_fault_has_its_tests() -> None:
    rows = table("Faults")
    assert len(rows) >= 11
    for row in rows:
        assert len(row) == 3, row
        files = re.findall(r"`(tests/[^`]+)`", row[2])
        assert files, row
        assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_state_that_is_shown_is_one() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert tuple(json.loads(shown)) == RunState._fields
    states = [row[0].strip("`") for row in table("How a run is doing")]
    assert states == [*get_args(Condition)]
