"""What files hold, a few hundred rows at a time: the format is known by content, then by name."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orpo_mlx.data.reading import arrow_rows
from orpo_mlx.data.reading.blocks import BOM, DamagedError, Entry, iter_blocks, iter_lines
from orpo_mlx.data.reading.csv_rows import iter_records
from orpo_mlx.data.reading.json_rows import iter_array, parse_line
from orpo_mlx.data.reading.splits import TABLE_KINDS, data_kind

T = TypeVar("T")
NOT_READ = {
    b"PK\x03\x04": "is a spreadsheet or a zip archive: save its rows as CSV",
    b"\xff\xfe": "is text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16: save it as UTF-8",
    b"FEA1": "is Feather version 1: write it again, as Parquet",
    b"version https://git-lfs": "is a Git LFS pointer, not the data: run git lfs pull",
    **dict.fromkeys(
        (arrow_rows.PARQUET, arrow_rows.ARROW_FILE, arrow_rows.ARROW_STREAM),
        "is a compressed table: decompress it first",
    ),
}


class Content(NamedTuple):
    """Rows as they are stored: lines as bytes, (location, values), or a pyarrow.RecordBatch.

    `first` numbers the first of them; `faults` are those of rows left out, with their locations.
    """

    first: int
    rows: Any
    faults: list[tuple[str, str]]


def iter_contents(file: Path, *, rows: int, size: int) -> Iterator[Content]:
    """The rows of a file, at most `rows` and about `size` bytes at a time.

    Raises DamagedError where the file cannot be read further.
    """
    with file.open("rb") as stream:
        head = stream.read(8)
    if head.startswith((arrow_rows.PARQUET, arrow_rows.ARROW_FILE, arrow_rows.ARROW_STREAM)):
        yield from _tables(arrow_rows.iter_batches(file, rows=rows, size=size))
    else:
        yield from _texts(iter_blocks(file), data_kind(file.name), rows, size)


def parse_rows(rows: Any, first: int) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """The location, the values and the fault of each row of a content."""
    if not isinstance(rows, list):
        for number, (values, fault) in enumerate(arrow_rows.parse_batch(rows), start=first):
            yield f"row {number}", values, fault
    elif rows and isinstance(rows[0], bytes):
        for number, line in enumerate(rows, start=first):
            values, fault = parse_line(line.removeprefix(BOM) if number == 1 else line)
            yield str(number), values, fault
    else:
        for location, values in rows:
            yield location, values, ""


def _tables(batches: Iterator[Any]) -> Iterator[Content]:
    first = 1
    try:
        for batch in batches:
            yield Content(first, batch, [])
            first += len(batch)
    except DamagedError as error:
        raise _after(error, first - 1, "row") from None


def _texts(blocks: Iterator[bytes], kind: str, rows: int, size: int) -> Iterator[Content]:
    start = next(blocks, b"")
    blocks = chain([start], blocks)
    _check_start(start)
    if kind in TABLE_KINDS and start:
        raise DamagedError(f"is not in {kind.capitalize()} format, despite its name")
    if kind in ("csv", "tsv"):
        records = iter_records(iter_lines(blocks), tabs=kind == "tsv")
        yield from _entries(records, rows, size)
    elif start.removeprefix(BOM).lstrip().startswith(b"["):
        yield from _entries(iter_array(blocks), rows, size)
    else:
        yield from _lines(iter_lines(blocks), rows, size)


def _check_start(start: bytes) -> None:
    """Raise DamagedError for what is known not to be read."""
    for magic, reason in NOT_READ.items():
        if start.startswith(magic):
            raise DamagedError(reason)
    if start.removeprefix(BOM).lstrip().startswith((b"{\n", b"{\r\n")):
        raise DamagedError(
            "holds one JSON object over several lines: write an array of objects, or one object "
            "per line"
        )


def _lines(lines: Iterable[bytes], rows: int, size: int) -> Iterator[Content]:
    first = 1
    for group in _group(lines, len, rows, size, "line"):
        if any(line.strip() for line in group):
            yield Content(first, group, [])
        first += len(group)


def _entries(entries: Iterable[Entry], rows: int, size: int) -> Iterator[Content]:
    first = 1
    for group in _group(entries, lambda entry: entry.size, rows, size, "row"):
        valid = [(entry.location, entry.values) for entry in group if not entry.fault]
        faults = [(entry.location, entry.fault) for entry in group if entry.fault]
        yield Content(first, valid, faults)
        first += len(group)


def _group(
    items: Iterable[T], measure: Callable[[T], int], rows: int, size: int, noun: str
) -> Iterator[list[T]]:
    """Items in lists of at most `rows`, that end when `size` is reached."""
    group: list[T] = []
    measured = passed = 0
    try:
        for item in items:
            group.append(item)
            measured += measure(item)
            if len(group) == rows or measured >= size:
                yield group
                passed += len(group)
                group, measured = [], 0
    except DamagedError as error:
        raise _after(error, passed + len(group), noun) from None
    if group:
        yield group


def _after(error: DamagedError, count: int, noun: str) -> DamagedError:
    if not count:
        return error
    return DamagedError(f"{error}, after {count:,} complete {noun}{'s' * (count != 1)} (not used)")
