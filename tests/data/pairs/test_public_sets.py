"""Public data sets: rows with their columns and nesting, and the pairs that these make."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import Reading, iter_pairs
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import find_sources
from tests.data.pairs import public_answers, public_pairs
from tests.data.pairs.public_rows import FIXTURES

SETS = public_pairs.SETS | public_answers.SETS


def test_every_fixture_is_read() -> None:
    assert {file.stem for file in FIXTURES.iterdir()} == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_becomes_these_pairs(name: str) -> None:
    file = FIXTURES / f"{name}.jsonl"
    (source,) = find_sources([str(file)], splits=["train"])
    report = ReadReport()
    messages: list[str] = []
    pairs = list(iter_pairs(source, Reading(), report, messages.append))
    expected = SETS[name]
    assert report.problems == []
    assert pairs == [p._replace(location=f"{file}:{p.location}") for p in expected.pairs]
    assert report.rows_left_out == expected.drops
    assert messages == [f"{file}: read as: {expected.sentence}."]


@pytest.mark.parametrize("name", SETS)
def test_nulls_that_arrow_writes_for_missing_keys_change_nothing(name: str, tmp_path: Path) -> None:
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in unified(rows)), encoding="utf-8")
    (source,) = find_sources([str(file)], splits=["train"])
    report = ReadReport()
    pairs = list(iter_pairs(source, Reading(), report))
    assert report.problems == []
    assert pairs == [p._replace(location=f"{file}:{p.location}") for p in SETS[name].pairs]


def unified(values: list[Any]) -> list[Any]:
    """Values with the keys of all dicts that are at the same position in each of them."""
    dicts = [v for v in values if isinstance(v, dict)]
    keys = dict.fromkeys(key for v in dicts for key in v)
    columns = {key: iter(unified([v.get(key) for v in dicts])) for key in keys}
    items = [item for v in values if isinstance(v, list) for item in v]
    inner = iter(unified(items) if items else [])
    return [
        {key: next(columns[key]) for key in keys}
        if isinstance(v, dict)
        else [next(inner) for _ in v]
        if isinstance(v, list)
        else v
        for v in values
    ]
