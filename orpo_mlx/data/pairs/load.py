"""Sources to preference pairs: the format of each is recognized, logged, and its rows are read."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from orpo_mlx.data.pairs.message_parts.nulls import SourceNulls, nulls_of
from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.data.pairs.readers import pair_rows, read_row
from orpo_mlx.data.pairs.recognize import RECOGNIZED_ROWS, recognize
from orpo_mlx.data.pairs.row_format import Reading, RowFormat
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO, describe_unpaired
from orpo_mlx.data.reading.report import Problem, ReadReport
from orpo_mlx.data.reading.sources import (
    PREVIEW_HINT,
    Row,
    Source,
    check_parts,
    find_sources,
    iter_rows,
    unused_weights,
)
from orpo_mlx.errors import MAX_SHOWN, OrpoError

__all__ = [
    "RECOGNIZED_ROWS",
    "Message",
    "PreferencePair",
    "Reading",
    "RowFormat",
    "bad_rows_error",
    "iter_pairs",
    "load_pairs",
    "pair_rows",
    "read_row",
    "recognize",
    "recognize_source",
]

Log = Callable[[str], None]
PLAIN = Reading()


def iter_pairs(
    source: Source,
    reading: Reading,
    report: ReadReport,
    log: Log = lambda text: None,
) -> Iterator[PreferencePair]:
    """The pairs of a source, in order; logs first what its rows are read as."""
    first = list(islice(iter_rows(source, ReadReport()), RECOGNIZED_ROWS))
    row_format = recognize_source(source, first, reading)
    if first:
        log(f"{source.name}: read as: {row_format.sentence}.")
    del first
    rows = iter_rows(source, report)
    if row_format.grouped:
        yield from pair_rows(rows, row_format, report)
        return
    for row in rows:
        yield from read_row(row, row_format, report)


def recognize_source(source: Source, first: Sequence[Row], reading: Reading) -> RowFormat:
    """The format of a source from its first rows.

    All rows decide whether nulls in tool calls, which the first have alike, fill missing keys.
    """
    row_format = recognize(first, reading, source.name)
    if row_format.nulls == SourceNulls() or len(first) < RECOGNIZED_ROWS:
        return row_format
    rows = iter_rows(source, ReadReport())
    return row_format._replace(nulls=nulls_of(rows, row_format.tool_columns))


def load_pairs(
    sources: str | Path | Sequence[str | Path],
    *,
    splits: Sequence[str] = ("train",),
    flag: str = "--data",
    reading: Reading = PLAIN,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    drop_bad: bool = False,
    log: Log = lambda text: None,
) -> list[PreferencePair]:
    """All pairs of the sources, in order; raises one OrpoError that names every bad row.

    With `drop_bad` those rows are left out and counted. Whatever is left out is logged by reason.
    """
    sources = [sources] if isinstance(sources, str | Path) else sources
    resolved = find_sources(
        [str(s) for s in sources],
        splits=splits,
        flag=flag,
        split=split,
        subset=subset,
        revision=revision,
        log=log,
    )
    check_parts([str(s) for s in sources], split=split, subset=subset, revision=revision)
    for text in unused_weights(resolved):
        log(text)
    pairs: list[PreferencePair] = []
    report = ReadReport()
    for source in resolved:
        count, own = len(pairs), ReadReport()
        try:
            pairs += iter_pairs(source, reading, own, log)
            if what := describe_unpaired(own, len(pairs) - count):
                log(f"{source.name}: {what}. {WHAT_TO_DO}")
            if len(pairs) == count and not (own.rows_left_out or own.problems):
                own.faults.append(f"{flag} {source.name}: the file is empty.")
        except OrpoError as error:
            own.faults.append(str(error))
        report.add(own)
    if drop_bad:
        report.drop_bad()
    if report.problems or report.faults:
        raise OrpoError("\n".join([*report.faults, *_bad_lines(report.problems), PREVIEW_HINT]))
    for reason, count in report.rows_left_out.most_common():
        log(f"left out: {count:,} x {reason}")
    log_notes(report, log)
    return pairs


def log_notes(report: ReadReport, log: Log) -> None:
    """Log what of the rows was not read or was changed, and where first."""
    for what, count in report.located_notes().most_common():
        log(f"{count:,} x {what}")


def bad_rows_error(problems: Sequence[Problem], hint: str = PREVIEW_HINT) -> OrpoError:
    """One error for all bad rows."""
    return OrpoError("\n".join([*_bad_lines(problems), hint]))


def _bad_lines(problems: Sequence[Problem]) -> list[str]:
    """A heading, the first problems in full, and the lines of all others."""
    if not problems:
        return []
    lines = list(dict.fromkeys(p.location for p in problems))
    heading = f"{len(lines):,} bad line{'s' * (len(lines) != 1)} in the data:"
    shown = [f"  {p}" for p in problems[:MAX_SHOWN]]
    rest = list(dict.fromkeys(p.location for p in problems[MAX_SHOWN:]))
    if rest:
        shown.append(f"  ... and {len(rest):,} more: {_line_ranges(rest)}")
    return [heading, *shown]


def _line_ranges(locations: Iterable[str]) -> str:
    """`a.jsonl:3-5, 9; b.parquet:row 1`: locations in order, consecutive ones as one range."""
    files: dict[str, list[list[int]]] = {}
    for location in locations:
        number = re.search(r"\d*$", location)
        file, digits = (location[: number.start()], number[0]) if number else (location, "")
        ranges = files.setdefault(file, [])
        if digits and ranges and ranges[-1][1] == int(digits) - 1:
            ranges[-1][1] += 1
        elif digits:
            ranges.append([int(digits)] * 2)
    return "; ".join(
        file + ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
        for file, ranges in files.items()
    )
