"""Nulls in tool calls and tools: those that were written stay, those that fill a table go."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orpo_mlx.data.pairs import load
from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.data.pairs.message_parts.nulls import NO_SCHEMA, NOT_NAMED, UNIFIED, UNIFIED_TOOLS
from tests.data.pairs.recognized import ReadRows
from tests.data.row_files import write_rows
from tests.data.rows import assistant, user

Row = dict[str, Any]


def call(name: str = "find", **arguments: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def row(*calls: Row, **keys: Any) -> Row:
    chosen, rejected = assistant("", tool_calls=list(calls)), assistant("no")
    return {"prompt": [user("rome")], "chosen": [chosen], "rejected": [rejected]} | keys


def tool(name: str = "find", **properties: Any) -> Row:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def arguments_of(pair: PreferencePair) -> list[Any]:
    return [one["function"]["arguments"] for one in pair.chosen["tool_calls"]]


def read(*rows: Row, **reading: Any) -> tuple[list[Any], dict[str, int]]:
    """The arguments of all calls, and what is reported."""
    result = ReadRows(*rows, **reading)
    assert not result.report.problems
    calls = [arguments for pair in result.pairs for arguments in arguments_of(pair)]
    return calls, dict(result.report.located_notes())


WRITTEN = call(city="rome", unit=None)
FULL, BARE = {"city": "rome", "unit": None}, {"city": "rome"}
TEXT = {"type": "string"}
OPTIONAL = {"type": ["string", "null"], "default": None}


@pytest.mark.parametrize(
    "tools",
    [
        [tool(city=TEXT, unit=OPTIONAL)],
        json.dumps([tool(city=TEXT, unit=OPTIONAL)]),
        [tool("send", body=TEXT), tool(city=TEXT, unit=OPTIONAL)],
        [tool(city=TEXT, unit=OPTIONAL)["function"]],
        [{"name": "find", "input_schema": {"properties": {"city": TEXT, "unit": OPTIONAL}}}],
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_null_that_the_schema_names_stays_in_the_call_and_in_the_schema(
    tools: Any, nested: bool
) -> None:
    written = row(WRITTEN, tools=tools)
    if nested:
        written = row(WRITTEN, prompt={"messages": [user("rome")], "tools": tools})
    assert read(written) == ([FULL], {})
    (pair,) = ReadRows(written).pairs
    assert pair.tools == (json.loads(tools) if isinstance(tools, str) else tools)


def test_a_null_that_the_schema_does_not_name_goes_and_is_reported() -> None:
    known = {"tools": [tool(city=TEXT)]}
    other = row(call("send", body=None), **known)
    assert read(row(WRITTEN, **known), other, row(WRITTEN, **known)) == (
        [BARE, {"body": None}, BARE],
        {f"{NOT_NAMED} (first: f:1)": 2},
    )
    unified = row(WRITTEN, tools=[tool(city=TEXT, unit=None)])
    assert read(unified, other) == (
        [BARE, {"body": None}],
        {f"{NO_SCHEMA} (first: f:1)": 1, f"{NOT_NAMED} (first: f:1)": 1},
    )


def test_objects_inside_arguments_follow_their_own_schema() -> None:
    spot = {"type": "object", "properties": {"zip": TEXT}}
    known = {"tools": [tool(spot=spot, stops={"type": "array", "items": spot})]}
    inner = {"zip": None, "other": None}
    calls, _ = read(row(call(spot=inner, stops=[inner]), **known), row(call("x", a=1), **known))
    assert calls == [{"spot": {"zip": None}, "stops": [{"zip": None}]}, {"a": 1}]
    free = {"tools": [tool(spot={"type": "object"})]}
    assert read(row(call(spot=inner), **free)) == ([{"spot": inner}], {})


def test_without_a_schema_nulls_stay_where_calls_have_keys_of_their_own() -> None:
    assert read(row(WRITTEN), row(call(city="rome"))) == ([FULL, BARE], {})
    assert read(row(WRITTEN, call(city="rome"))) == ([FULL, BARE], {})
    answer = [assistant("", tool_calls=[call(city="rome")])]
    (pair,) = ReadRows(row(WRITTEN, rejected=answer)).pairs
    assert (pair.chosen, [pair.rejected]) == (assistant("", tool_calls=[WRITTEN]), answer)


def test_without_a_schema_nulls_go_where_every_call_has_the_same_keys() -> None:
    text = call(city="rome", unit="C")
    text["function"]["arguments"] = json.dumps(text["function"]["arguments"])
    assert read(row(WRITTEN), row(call("send", city=None, unit="C")), row(text)) == (
        [BARE, {"unit": "C"}, {"city": "rome", "unit": "C"}],
        {f"{UNIFIED} (first: f:1)": 2},
    )
    inside = row(call(spot={"zip": None}), call(spot={"zip": "1", "way": None}))
    assert read(inside)[0] == [{"spot": {"zip": None}}, {"spot": {"zip": "1", "way": None}}]


def test_all_rows_decide_and_not_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "RECOGNIZED_ROWS", 2)
    file = write_rows(tmp_path / "rows.jsonl", [row(WRITTEN)] * 3)
    assert [arguments_of(pair) for pair in load_pairs(file)] == [[BARE]] * 3
    write_rows(file, [*[row(WRITTEN)] * 3, row(call(city="rome"))])
    assert [arguments_of(pair) for pair in load_pairs(file)] == [[FULL]] * 3 + [[BARE]]


def test_nulls_of_tools_go_where_all_tools_have_the_same_keys_and_one_a_value() -> None:
    def described(text: str | None) -> Row:
        function = {"name": "find", "description": text, "strict": None}
        return {"type": "function", "function": function}

    rows = [row(call(), tools=[described(text)]) for text in (None, "Finds.")]
    first, second = ReadRows(*rows).pairs
    assert first.tools == [{"type": "function", "function": {"name": "find", "strict": None}}]
    assert second.tools == [described("Finds.")]
    assert read(*rows)[1] == {f"{UNIFIED_TOOLS} (first: f:1)": 1}
    alone = ReadRows(rows[0]).pairs
    assert alone[0].tools == [described(None)]


def test_the_nulls_of_a_table_fill_missing_keys_but_for_those_in_json_text(tmp_path: Path) -> None:
    rows = [row(WRITTEN), row(call("send", body="x")), row(call("send", body=None))]
    tools = [tool(city=TEXT, unit=TEXT), tool("send", body=TEXT)]
    rows = [one | {"tools": tools} for one in rows]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    lines: list[str] = []
    pairs = load_pairs(file, log=lines.append)
    assert [arguments_of(pair) for pair in pairs] == [[BARE], [{"body": "x"}], [{}]]
    assert pairs[0].tools == tools
    assert len(lines) == 1
    written = row(WRITTEN, prompt="rome", tools=[tool(unit=OPTIONAL)])
    columns = {
        name: pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps(value)]))
        for name, value in written.items()
    }
    table = pa.table(columns | {"prompt": pa.array(["rome"])})
    pq.write_table(table, file)
    (pair,) = load_pairs(file)
    assert arguments_of(pair) == [FULL]
    assert pair.tools == [tool(unit=OPTIONAL)]


def test_tools_in_a_column_that_is_named_by_hand_are_schemas_too() -> None:
    written = row(WRITTEN, helpers=[tool(city=TEXT)])
    assert read(written, columns={"tools": "helpers"})[0] == [BARE]
    assert read(written, row(call("send", body="x")))[0] == [FULL, {"body": "x"}]
