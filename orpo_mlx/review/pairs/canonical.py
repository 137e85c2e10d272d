"""Pairs of any row format as rows of one: prompt, chosen and rejected messages, tools, labels.

What is written reads back as the same pairs.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.errors import OrpoError, collected

PARTS = ("prompt", "chosen", "rejected")
ROW_GROUP = 1_000  # rows that are held at once
KINDS: dict[type, Any] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
# Keys of messages whose values are nested.
NESTED = ("tool_calls", "function")


def canonical_row(pair: PreferencePair) -> dict[str, Any]:
    """The row of a pair, without a weight of 1; the texts of one that came rendered stay texts."""
    row: dict[str, Any] = {
        "prompt": pair.messages,
        "chosen": [pair.chosen],
        "rejected": [pair.rejected],
    }
    if pair.raw:
        row = {name: row[name][0]["content"] for name in PARTS}
    else:
        row = {name: [_with_arguments(m, _object_or_text) for m in row[name]] for name in PARTS}
    if pair.tools:
        row["tools"] = [_object_or_text(tool) for tool in pair.tools]
    if pair.weight != 1:
        row["weight"] = float(pair.weight)
    return row | {name: text for name, text in pair.labels.items() if name not in row}


def save_lines(pairs: Iterable[PreferencePair], file: Path) -> int:
    """Write pairs as JSON Lines, one at a time; returns how many.

    Raises OrpoError for rendered pairs among those of messages: no file is read as both.
    """
    count, raw = 0, False
    with file.open("w", encoding="utf-8") as stream:
        for pair in pairs:
            if count and pair.raw != raw:
                raise OrpoError(
                    f"{pair.location}: came with its template's markers and others did not, or "
                    "the other way around. Convert the sources one by one."
                )
            raw = pair.raw
            stream.write(json.dumps(canonical_row(pair), ensure_ascii=False) + "\n")
            count += 1
    return count


def save_parquet(lines: Path, file: Path) -> None:
    """Write what `save_lines` wrote as Parquet.

    Raises OrpoError where a column would have to hold values of several kinds.
    """
    schema = _schema(_iter_rows(lines))
    rows = _iter_rows(lines)
    with pq.ParquetWriter(file, schema) as writer:
        while group := [_flat(row) for row in islice(rows, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _iter_rows(lines: Path) -> Iterator[dict[str, Any]]:
    with lines.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def _object_or_text(value: Any) -> Any:
    """An object as it is; anything else, and what holds a null, as JSON: readers change it."""
    return value if isinstance(value, dict) and not _holds_null(value) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _with_arguments(message: Message, written: Callable[[Any], Any]) -> Message:
    """A message with the arguments of its tool calls written in one way."""
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_call(call, written) for call in message["tool_calls"]]}


def _call(call: dict[str, Any], written: Callable[[Any], Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _call(call["function"], written)}
    return {**call, "arguments": written(call["arguments"])}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what no two rows share the keys of as text: arguments and tools."""

    def as_text(arguments: Any) -> str:
        return arguments if isinstance(arguments, str) else _text(arguments)

    messages = {name: row[name] for name in PARTS if isinstance(row[name], list)}
    flat: dict[str, Any] = {
        name: [_with_arguments(m, as_text) for m in own] for name, own in messages.items()
    }
    if "tools" in row:
        flat["tools"] = [as_text(tool) for tool in row["tools"]]
    return row | flat


def _schema(rows: Iterable[dict[str, Any]]) -> pa.Schema:
    """The columns of rows: the keys of all their messages, and all labels."""
    kinds: dict[str, Any] = {}
    columns: dict[str, set[type]] = {}
    for row in map(_flat, rows):
        for name, value in row.items():
            columns.setdefault(name, set()).add(type(value))
            if name in PARTS and isinstance(value, list):
                for message in value:
                    _note(message, kinds)
    if problems := [*_problems(kinds), *_problems(columns)]:
        raise collected("Parquet cannot hold these pairs as they are; write .jsonl:", problems)
    message = pa.list_(_struct(kinds))
    fields = {name: message if list in types else KINDS[str] for name, types in columns.items()}
    if "tools" in fields:
        fields["tools"] = pa.list_(pa.string())
    if "weight" in fields:
        fields["weight"] = KINDS[float]
    return pa.schema(fields)


def _note(values: Mapping[str, Any], kinds: dict[str, Any]) -> None:
    """Add the kinds of values to those seen, by key."""
    for key, value in values.items():
        if key in NESTED and isinstance(value, dict | list):
            for inner in value if isinstance(value, list) else [value]:
                _note(inner, kinds.setdefault(key, {}))
        else:
            kinds.setdefault(key, set()).add(type(value))


def _problems(kinds: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for every key whose values fit no column."""
    for key, types in kinds.items():
        if isinstance(types, dict):
            yield from _problems(types)
        elif len(types) > 1 or not types <= {*KINDS, list}:
            names = " and ".join(sorted(kind.__name__ for kind in types))
            yield f'"{key}" holds values of kind {names}'


def _struct(kinds: Mapping[str, Any]) -> pa.StructType:
    fields = {
        key: _struct(types) if isinstance(types, dict) else KINDS[next(iter(types))]
        for key, types in kinds.items()
    }
    if "tool_calls" in fields:
        fields["tool_calls"] = pa.list_(fields["tool_calls"])
    return pa.struct(fields)
