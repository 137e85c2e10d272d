"""Rows of CSV and TSV files: every value is text, as written."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from orpo_mlx.data.reading.blocks import BOM, MAX_LINE_BYTES, DamagedError, Entry, bad_byte


def iter_records(lines: Iterable[bytes], *, tabs: bool) -> Iterator[Entry]:
    """The records below the header, each called by the line on which it begins.

    Raises DamagedError for a header that names no columns, and for a quote that does not end.
    """
    # The limit is one for all readers; a field is a whole answer here.
    csv.field_size_limit(MAX_LINE_BYTES)
    texts = _texts(lines)
    first = next(texts, None)
    if first is None:
        return
    # Spreadsheets write semicolons where the comma is the decimal sign.
    comma = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(chain([first], texts), delimiter="\t" if tabs else comma, strict=True)
    header, fault = _next_record(reader)
    if fault or not header:
        raise DamagedError(f"line 1: {fault or 'the names of the columns are missing'}")
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise DamagedError(f'line 1: the column "{double}" is in the header twice')
    while True:
        line = reader.line_num + 1
        fields, fault = _next_record(reader)
        if fields is None:
            return
        if fields and not fault and len(fields) != len(header):
            fault = f"{_count(fields, 'field')}, but the header has {_count(header, 'column')}"
        if fault:
            yield Entry(str(line), None, fault, 0)
        elif fields:
            values = dict(zip(header, fields, strict=True))
            yield Entry(str(line), values, "", sum(map(len, fields)))


def _next_record(reader: Any) -> tuple[list[str] | None, str]:
    """The fields of the next record and what is wrong with them; None at the end."""
    line = reader.line_num + 1
    try:
        fields = next(reader)
    except StopIteration:
        return None, ""
    except csv.Error as error:
        reason = str(error)
        if reason.startswith(("unexpected end", "field larger")):
            raise DamagedError(f"line {line:,}: a quote is opened here and not closed") from None
        if reason.startswith("new-line"):
            return [], "not CSV: a carriage return is outside quotes"
        return [], "not CSV: text follows a closing quote (a quote inside a text is written twice)"
    return fields, bad_byte("".join(fields))


def _texts(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE_BYTES:
            raise DamagedError(f"line {number:,}: longer than {MAX_LINE_BYTES:,} bytes")
        line = line.removeprefix(BOM) if number == 1 else line
        yield line.decode("utf-8", "surrogateescape") + "\n"


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"
