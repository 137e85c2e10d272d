"""One row to its pairs, or several rows to theirs, by the format of their source.

A fault is a Problem, a row that makes no pair by its nature a counted drop; nothing is cast.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.recognize import other_format
from orpo_mlx.data.pairs.row_format import RowFormat
from orpo_mlx.data.pairs.single_answers import pair_of_answers
from orpo_mlx.data.reading.sources import Problem, Row


def read_row(
    row: Row, row_format: RowFormat, problems: list[Problem], drops: Counter[str]
) -> list[Any]:
    """The pairs of a row, or the answer that it holds, by its format; faults go to `problems`."""
    try:
        return row_format.spec.read(row, row_format, drops)
    except FaultyRowError as error:
        if other := other_format(row.values, row_format):
            problems.append(Problem(row.place, f"row of another shape ({other})"))
        else:
            problems.extend(Problem(row.place, fault) for fault in error.faults)
        return []


def pair_rows(
    rows: Iterable[Row], row_format: RowFormat, problems: list[Problem], drops: Counter[str]
) -> Iterator[PreferencePair]:
    """The pairs of rows of a grouped format, each of which holds one answer."""
    pair_up = row_format.spec.pair_up
    assert pair_up, f"{row_format.name}: rows are pairs by themselves"
    answers = (answer for row in rows for answer in read_row(row, row_format, problems, drops))
    for better, worse in pair_up(answers, row_format, drops):
        try:
            pairs = pair_of_answers(better, worse, row_format, drops)
        except FaultyRowError as error:
            problems.extend(Problem(better.place, fault) for fault in error.faults)
        else:
            yield from pairs
