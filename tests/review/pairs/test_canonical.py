"""What is written as canonical rows reads back as the same pairs, whatever they were before."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.review.pairs.canonical import canonical_row, save_lines, save_parquet
from tests.data.rows import assistant, call, pair, system, user

FIXTURES = sorted((Path(__file__).parents[2] / "data" / "fixtures").glob("*.jsonl"))
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"default": None}}}]
PAIRS = [
    pair("Grüße 你好\n"),
    pair([system("be kind"), user("hi"), assistant("yes?"), user("my card")], tools=TOOLS),
    pair([user("hi")], assistant("", tool_calls=call("find", location="Köln", near=None)),
         assistant("", tool_calls=call("look")), tools=TOOLS[:1]),
    pair([user("2?"), assistant("It is")], assistant(" 2", reasoning_content="1 + 1"),
         assistant(" 3", name="bot")),
    pair([user("hi"), assistant("", tool_calls=call("find")),
          {"role": "tool", "content": "{}", "tool_call_id": "1"}], labels={"kind": "a\nb"}),
    pair(chosen=assistant("", tool_calls=[{"function": {"name": "f", "arguments": "true"}}]),
         labels={"kind": "", "other": "x"}),
]  # fmt: skip


def normal(row: PreferencePair) -> PreferencePair:
    """Without what a row does not hold: its location, what was cut after it, text or message."""
    prompt = row.prompt if row.raw else row.messages
    return row._replace(prompt=prompt, location="", extra_messages=0)


def same_again(pairs: list[PreferencePair], folder: Path) -> None:
    lines, table = folder / "a.jsonl", folder / "a.parquet"
    assert save_lines(iter(pairs), lines) == len(pairs)
    save_parquet(lines, table)
    for file in (lines, table):
        assert list(map(normal, load_pairs(file))) == list(map(normal, pairs)), file


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_pairs_of_every_public_set_read_back_the_same(file: Path, tmp_path: Path) -> None:
    same_again(load_pairs(file), tmp_path)


def test_calls_tools_nulls_reasoning_and_labels_read_back_the_same(tmp_path: Path) -> None:
    same_again(PAIRS, tmp_path)


def test_weights_read_back_the_same_and_one_of_1_is_not_written(tmp_path: Path) -> None:
    weights = (1.0, 0.1, 0.0, 1.0, 2.5, 1.0)
    same_again([p._replace(weight=w) for p, w in zip(PAIRS, weights, strict=True)], tmp_path)
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row.get("weight") for row in written] == [None, 0.1, 0.0, None, 2.5, None]
    field = pq.read_schema(tmp_path / "a.parquet").field("weight")
    assert str(field.type) == "double"


def test_a_row_is_messages_and_what_else_the_pair_holds() -> None:
    assert canonical_row(PAIRS[1]._replace(labels={"kind": "a", "prompt": "no"})) == {
        "prompt": PAIRS[1].prompt,
        "chosen": [assistant("please check")],
        "rejected": [assistant("later")],
        "tools": [json.dumps(TOOLS[0])],  # Arrow would drop or invent nulls
        "kind": "a",
    }


def test_columns_of_parquet_are_messages_and_texts(tmp_path: Path) -> None:
    save_lines(PAIRS, tmp_path / "lines")
    save_parquet(tmp_path / "lines", tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == ["prompt", "chosen", "rejected", "tools", "kind", "other"]
    assert {"role", "content", "tool_calls", "reasoning_content"} <= {
        field.name for field in schema.field("chosen").type.value_type
    }


def test_parquet_refuses_values_of_several_kinds(tmp_path: Path) -> None:
    rows = [
        pair(chosen=assistant("a", weight=1)),
        pair(chosen=assistant("a", weight=0.5)),
        pair(chosen=assistant("a", audio={"id": 1})),
    ]
    save_lines(rows, tmp_path / "lines")
    with pytest.raises(OrpoError) as error:
        save_parquet(tmp_path / "lines", tmp_path / "a.parquet")
    assert str(error.value).splitlines() == [
        "Parquet cannot hold these pairs as they are; write .jsonl:",
        '  "weight" holds values of kind float and int',
        '  "audio" holds values of kind dict',
    ]


def test_rendered_pairs_and_messages_are_not_in_one_file(tmp_path: Path) -> None:
    rendered: Any = pair("<|im_start|>user\nhi<|im_end|>\n", raw=True, location="g:2")
    with pytest.raises(OrpoError, match="^g:2: came with its template's markers"):
        save_lines([pair(), rendered], tmp_path / "lines")
