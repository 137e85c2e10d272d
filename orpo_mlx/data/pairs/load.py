"""Sources to preference pairs: the format of each is recognised, told, and its rows are read."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.data.pairs.readers import pair_rows, read_row
from orpo_mlx.data.pairs.recognize import RECOGNISED_ROWS, recognise
from orpo_mlx.data.pairs.row_format import Reading, RowFormat
from orpo_mlx.data.reading.sources import (
    PREVIEW_HINT,
    Problem,
    Source,
    check_parts,
    find_sources,
    iter_rows,
)
from orpo_mlx.errors import MAX_SHOWN, OrpoError

__all__ = [
    "RECOGNISED_ROWS",
    "Message",
    "PreferencePair",
    "Reading",
    "RowFormat",
    "bad_rows_error",
    "count_problems",
    "iter_pairs",
    "load_pairs",
    "pair_rows",
    "read_row",
    "recognise",
]

Tell = Callable[[str], None]
PLAIN = Reading()


def iter_pairs(
    source: Source,
    reading: Reading,
    problems: list[Problem],
    drops: Counter[str],
    tell: Tell = lambda text: None,
) -> Iterator[PreferencePair]:
    """The pairs of a source, in order; tells first what its rows are read as."""
    first = list(islice(iter_rows(source, []), RECOGNISED_ROWS))
    row_format = recognise(first, reading, source.name)
    if first:
        tell(f"{source.name}: read as: {row_format.sentence}.")
    del first
    rows = iter_rows(source, problems)
    if row_format.grouped:
        yield from pair_rows(rows, row_format, problems, drops)
        return
    for row in rows:
        yield from read_row(row, row_format, problems, drops)


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
    tell: Tell = lambda text: None,
) -> list[PreferencePair]:
    """All pairs of the sources, in order; raises one OrpoError that names every bad row.

    With `drop_bad` those rows are left out and counted. Whatever is left out is told by reason.
    """
    sources = [sources] if isinstance(sources, str | Path) else sources
    found = find_sources(
        [str(s) for s in sources],
        splits=splits,
        flag=flag,
        split=split,
        subset=subset,
        revision=revision,
        tell=tell,
    )
    check_parts([str(s) for s in sources], split=split, subset=subset, revision=revision)
    pairs: list[PreferencePair] = []
    problems: list[Problem] = []
    drops: Counter[str] = Counter()
    faults = []
    for source in found:
        before = len(pairs), len(problems), drops.total()
        try:
            pairs += iter_pairs(source, reading, problems, drops, tell)
        except OrpoError as error:
            faults.append(str(error))
            continue
        if before == (len(pairs), len(problems), drops.total()):
            faults.append(f"{flag} {source.name}: the file is empty.")
    if drop_bad:
        count_problems(problems, drops)
        problems = []
    if problems or faults:
        raise OrpoError("\n".join([*faults, *_bad_lines(problems), PREVIEW_HINT]))
    for reason, count in drops.most_common():
        tell(f"left out: {count:,} x {reason}")
    return pairs


def count_problems(problems: Iterable[Problem], drops: Counter[str]) -> None:
    """Count bad rows among what is left out, each by the first of its faults."""
    first_faults = dict(reversed(list(problems)))
    for fault in first_faults.values():
        kind = re.split(r" \(|: ", fault, maxsplit=1)[0]
        drops["bad row: " + re.sub(r"\[\d+\]", "", kind)] += 1


def bad_rows_error(problems: list[Problem]) -> OrpoError:
    """One error for all bad rows."""
    return OrpoError("\n".join([*_bad_lines(problems), PREVIEW_HINT]))


def _bad_lines(problems: list[Problem]) -> list[str]:
    """A heading, the first problems in full, and the lines of all others."""
    if not problems:
        return []
    lines = list(dict.fromkeys(p.place for p in problems))
    heading = f"{len(lines):,} bad line{'s' * (len(lines) != 1)} in the data:"
    shown = [f"  {p}" for p in problems[:MAX_SHOWN]]
    rest = list(dict.fromkeys(p.place for p in problems[MAX_SHOWN:]))
    if rest:
        shown.append(f"  ... and {len(rest):,} more: {_line_ranges(rest)}")
    return [heading, *shown]


def _line_ranges(places: Iterable[str]) -> str:
    """`a.jsonl:3-5, 9; b.parquet:row 1`: places in order, consecutive ones as one range."""
    files: dict[str, list[list[int]]] = {}
    for place in places:
        number = re.search(r"\d*$", place)
        file, digits = (place[: number.start()], number[0]) if number else (place, "")
        ranges = files.setdefault(file, [])
        if digits and ranges and ranges[-1][1] == int(digits) - 1:
            ranges[-1][1] += 1
        elif digits:
            ranges.append([int(digits)] * 2)
    return "; ".join(
        file + ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
        for file, ranges in files.items()
    )
