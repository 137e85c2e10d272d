"""One row to its pairs, or several rows to theirs, by the format of their source.

The report keeps what is wrong with a row, and counts one that makes no pair by its nature; nothing
is cast.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from orpo_mlx.data.pairs.fields import weight_of
from orpo_mlx.data.pairs.message_parts.nulls import settle_nulls
from orpo_mlx.data.pairs.message_parts.unread import are_texts, unread_in_row
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.recognize import other_format
from orpo_mlx.data.pairs.row_format import RowFormat
from orpo_mlx.data.pairs.single_answers import pair_of_answers
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row


def read_row(row: Row, row_format: RowFormat, report: ReadReport) -> list[Any]:
    """The pairs of a row, or the answer that it holds, by its format; what is wrong is reported."""
    if not (plain := are_texts(row.values, row_format.tool_columns)):
        row = settle_nulls(
            row,
            row_format.nulls,
            lambda what: report.note(what, row.location),
            row_format.tool_columns,
        )
    faults: list[str] = []
    weight = weight_of(row.values, row_format, faults)
    try:
        result = row_format.spec.read(row, row_format, ReadReport() if faults else report)
    except FaultyRowError as error:
        if other := other_format(row.values, row_format):
            report.refuse(row.location, f"row of another format ({other})")
        else:
            report.refuse(row.location, *error.faults, *faults)
        return []
    if faults:
        report.refuse(row.location, *faults)
        return []
    if weight != 1:
        result = [made._replace(weight=weight) for made in result]
    for name in () if plain else dict.fromkeys(unread_in_row(row.values, row_format)):
        report.note(f'"{name}", which is not read', row.location)
    return result


def pair_rows(
    rows: Iterable[Row], row_format: RowFormat, report: ReadReport
) -> Iterator[PreferencePair]:
    """The pairs of rows of a grouped format, each of which holds one answer."""
    pair_up = row_format.spec.pair_up
    assert pair_up, f"{row_format.name}: rows are pairs by themselves"
    answers = (answer for row in rows for answer in read_row(row, row_format, report))
    for better, worse in pair_up(answers, row_format, report):
        try:
            pairs = pair_of_answers(better, worse, row_format, report)
        except FaultyRowError as error:
            report.refuse(better.location, *error.faults)
        else:
            yield from pairs
