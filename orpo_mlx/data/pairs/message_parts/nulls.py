"""Nulls in tool calls and tools: which were written, and which fill a table's missing keys.

Arrow gives every struct of a column the same keys, null where a row had none.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.message_parts.tool_calls import ARGUMENT_KEYS, TOOL_KEYS
from orpo_mlx.data.reading.arrow_rows import JsonObject
from orpo_mlx.data.reading.sources import Row

NOT_NAMED = "tool call without null arguments that the function's schema does not name"
UNIFIED = "tool call without null arguments: every call of the source has the same keys"
UNIFIED_TOOLS = "list of tools without null entries: every tool of the source has the same keys"
NO_SCHEMA = "list of tools without properties that are null"

SCHEMA_KEYS = ("parameters", "input_schema")
CALL_KEYS = ("tool_calls", "function_call")
KeyPath = tuple[str, ...]
Note = Callable[[str], object]


class SourceNulls(NamedTuple):
    """Which nulls of a source come from Arrow: all in calls, and in tools those at some paths."""

    in_calls: bool = False
    in_tools: frozenset[KeyPath] = frozenset()


class _Keys:
    """The keys of many values at each path, and the paths that have a value somewhere."""

    def __init__(self) -> None:
        self.sets: dict[KeyPath, set[frozenset[str]]] = defaultdict(set)
        self.valued: set[KeyPath] = set()
        self.nulls: set[KeyPath] = set()

    def add(self, value: Any, path: KeyPath = ()) -> None:
        if isinstance(value, list):
            for inner in value:
                self.add(inner, (*path, "[]"))
        elif isinstance(value, Mapping):
            self.sets[path].add(frozenset(value))
            for key, inner in value.items():
                (self.nulls if inner is None else self.valued).add((*path, key))
                self.add(inner, (*path, key))

    @property
    def are_unified(self) -> bool:
        """Whether nulls may fill missing keys: there are the same everywhere."""
        return all(len(sets) == 1 for sets in self.sets.values())


def nulls_of(rows: Iterable[Row], tool_columns: Sequence[str] = TOOL_KEYS) -> SourceNulls:
    """What the nulls in tool calls and tools of JSON rows are."""
    calls, tools = _Keys(), _Keys()
    some_without_schema = False
    for row in rows:
        if row.is_padded:
            continue
        own = list(_iter_calls(row.values))
        schemas = _schemas(row.values, tool_columns) if own else {}
        for call in own:
            calls.add(_as_object(_arguments(call)[1]))
            some_without_schema |= str(_function_of(call).get("name")) not in schemas
        for listed in _iter_tools(row.values, tool_columns):
            tools.add(list(map(_as_object, listed)))
    in_tools = tools.nulls & tools.valued if tools.are_unified else set[KeyPath]()
    return SourceNulls(some_without_schema and calls.are_unified, frozenset(in_tools))


def settle_nulls(
    row: Row, nulls: SourceNulls, note: Note, tool_columns: Sequence[str] = TOOL_KEYS
) -> Row:
    """A row whose tool calls and tools hold the nulls that were written; others are noted."""
    tools = _iter_tools(row.values, tool_columns)
    if not any(map(_holds_null, (*_iter_calls(row.values), *tools))):
        return row
    if row.is_padded:
        values = _without_padding(row.values, {*CALL_KEYS, *TOOL_KEYS, *tool_columns})
        return row._replace(values=values)
    notes = dict[str, None]()
    values = _with_tools(row.values, tool_columns, _tool_keeper(nulls.in_tools, notes.setdefault))
    schemas = _schemas(values, tool_columns)

    def keep(call: Any) -> Any:
        return _settle_call(call, schemas, nulls.in_calls, notes.setdefault)

    values = _with_calls(values, keep)
    for what in notes:
        note(what)
    return row._replace(values=values)


def _settle_call(call: Any, schemas: Mapping[str, Any], unified: bool, note: Note) -> Any:
    """A call without the null arguments that its function does not know."""
    if isinstance(call, list):
        return [_settle_call(one, schemas, unified, note) for one in call]
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _settle_call(call["function"], schemas, unified, note)}
    key, arguments = _arguments(call)
    schema = schemas.get(str(call.get("name")))
    if not isinstance(arguments, Mapping) or not (schema or unified):
        return call
    settled = _without_unnamed(arguments, schema) if schema else _without_nulls(arguments)
    if settled == arguments:
        return call
    note(NOT_NAMED if schema else UNIFIED)
    return {**call, key: settled}


def _without_unnamed(value: Any, schema: Any) -> Any:
    """A value without the nulls of objects whose schema has no such property."""
    if isinstance(value, list):
        items = schema.get("items") if isinstance(schema, Mapping) else None
        return [_without_unnamed(inner, items) for inner in value]
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(properties, Mapping):
        return value
    return {
        key: _without_unnamed(inner, properties.get(key))
        for key, inner in value.items()
        if inner is not None or properties.get(key) is not None
    }


def _tool_keeper(unified: frozenset[KeyPath], note: Note) -> Callable[[Any], Any]:
    """What takes from tools the nulls at some paths, and properties without a schema."""

    def keep(value: Any, path: KeyPath = ()) -> Any:
        if isinstance(value, list):
            return [keep(inner, (*path, "[]")) for inner in value]
        if not isinstance(value, Mapping):
            return value
        kept = {}
        for key, inner in value.items():
            own = (*path, key)
            if inner is None and (own in unified or path[-1:] == ("properties",)):
                note(UNIFIED_TOOLS if own in unified else NO_SCHEMA)
            else:
                kept[key] = keep(inner, own)
        return kept

    return keep


def _with_calls(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with the calls of its messages changed, at any depth."""
    if isinstance(value, list):
        return [_with_calls(inner, change) for inner in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: change(inner) if key in CALL_KEYS else _with_calls(inner, change)
        for key, inner in value.items()
    }


def _with_tools(
    values: Mapping[str, Any], columns: Sequence[str], change: Callable[[Any], Any]
) -> dict[str, Any]:
    """A row, or an object around messages, with its tools changed."""

    def changed(key: str, value: Any) -> Any:
        if key in columns:
            return change(value)
        nested = isinstance(value, Mapping) and "messages" in value
        return _with_tools(value, TOOL_KEYS, change) if nested else value

    return {key: changed(key, value) for key, value in values.items()}


def _without_padding(value: Any, keys: Set[str], inside: bool = False) -> Any:
    """A value without the nulls of Arrow's structs under some keys; JSON text in it stays."""
    if isinstance(value, list):
        return [_without_padding(inner, keys, inside) for inner in value]
    if not isinstance(value, dict) or isinstance(value, JsonObject):
        return value
    return {
        key: _without_padding(inner, keys, inside or key in keys)
        for key, inner in value.items()
        if inner is not None or not inside
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _schemas(values: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The parameters of the functions that a row's tools describe, by name."""
    known = {}
    for listed in _iter_tools(values, columns):
        for tool in map(_as_object, listed):
            function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
            schemas = map(function.get, SCHEMA_KEYS) if isinstance(function, Mapping) else ()
            if schema := next((one for one in schemas if isinstance(one, Mapping)), None):
                known[str(function.get("name"))] = schema
    return {name: schema for name, schema in known.items() if "properties" in schema}


def _iter_calls(value: Any) -> Iterator[Mapping[str, Any]]:
    """The tool calls of messages, at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _iter_calls(inner)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in CALL_KEYS:
                listed = inner if isinstance(inner, list) else [inner]
                yield from (call for call in listed if isinstance(call, Mapping))
            elif key not in TOOL_KEYS and isinstance(inner, list | Mapping):
                yield from _iter_calls(inner)


def _iter_tools(value: Mapping[str, Any], columns: Sequence[str]) -> Iterator[list[Any]]:
    """The lists of tools of a row, in a column or next to messages."""
    for key, inner in value.items():
        if key in columns:
            listed = _as_object(inner)
            if isinstance(listed, list):
                yield listed
        elif isinstance(inner, Mapping) and "messages" in inner:
            yield from _iter_tools(inner, TOOL_KEYS)


def _arguments(call: Mapping[str, Any]) -> tuple[str, Any]:
    """The arguments of a call, and their key."""
    call = _function_of(call)
    key = next((key for key in ARGUMENT_KEYS if key in call), ARGUMENT_KEYS[0])
    return key, call.get(key)


def _function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    return function if isinstance(function, Mapping) else call


def _as_object(value: Any) -> Any:
    """What JSON text holds; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(inner is None or _holds_null(inner) for inner in value.values())
    return isinstance(value, list) and any(map(_holds_null, value))
