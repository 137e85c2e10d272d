"""Rows to pairs, and the one error that names every bad line."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import PreferencePair, Reading, load_pairs, read_row, recognize
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row
from orpo_mlx.errors import OrpoError

HINT = (
    'A row looks like: {"prompt": "How do I ...?", "chosen": "First ...", "rejected": "No idea."}'
)
PLAIN = recognize(
    [Row("f:1", {"prompt": "p", "chosen": "good", "rejected": "bad"})], Reading(), "f"
)
ROLES = "system, developer, user, assistant, tool, ipython, function"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def call(arguments: Any, name: str = "weather") -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def read(**values: Any) -> PreferencePair:
    row = {"prompt": "p", "chosen": "good", "rejected": "bad", **values}
    report = ReadReport()
    (pair,) = read_row(Row("f:1", row), PLAIN, report)
    assert (report.problems, report.rows_left_out) == ([], {})
    return pair


def faults(**values: Any) -> list[str]:
    report = ReadReport()
    row = {"prompt": "p", "chosen": "good", "rejected": "bad", **values}
    row = {k: v for k, v in row.items() if v != "-"}
    assert read_row(Row("f:1", row), PLAIN, report) == []
    assert {p.location for p in report.problems} == {"f:1"}
    return [p.fault for p in report.problems]


def test_texts_become_one_user_turn_and_two_answers() -> None:
    pair = read(trade="bank", score=3)
    assert pair == (
        "p",
        assistant("good"),
        assistant("bad"),
        "f:1",
        None,
        0,
        {"trade": "bank"},
        False,
        1.0,
        False,
    )
    assert pair.messages == [user("p")]


def test_arguments_of_a_call_are_always_there() -> None:
    calls = [{"id": None, "function": {"name": "now", "arguments": None}}]
    answer = read(chosen=[assistant("", tool_calls=calls)]).chosen
    assert answer["tool_calls"] == [{"function": {"name": "now", "arguments": {}}}]


def test_messages_are_read_without_empty_keys() -> None:
    pair = read(
        prompt=[{**user("p"), "tool_calls": None, "name": None}],
        chosen=[assistant("good", tool_calls=[])],
        rejected=[{"role": "assistant", "content": None, "tool_calls": call({"city": "Oslo"})}],
    )
    assert pair.messages == [user("p")]
    assert pair.chosen == assistant("good")
    assert pair.rejected == assistant("", tool_calls=call({"city": "Oslo"}))


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "go"}, {"type": "text", "text": "od"}]
    assert read(chosen=[{"role": "assistant", "content": parts}]).chosen == assistant("good")


def test_of_several_messages_the_first_answer_is_used_and_the_rest_counted() -> None:
    pair = read(
        chosen=[assistant("good"), user("thanks"), assistant("welcome")],
        rejected=[assistant("bad"), user("hm")],
    )
    assert (pair.chosen, pair.rejected) == (assistant("good"), assistant("bad"))
    assert pair.extra_messages == 3


def test_messages_that_both_answers_begin_with_belong_to_the_prompt() -> None:
    shared = [assistant("Which one?"), user("The blue one.")]
    pair = read(
        chosen=[*shared, assistant("good"), user("thanks")], rejected=[*shared, assistant("bad")]
    )
    assert pair.messages == [user("p"), *shared]
    assert (pair.chosen, pair.rejected) == (assistant("good"), assistant("bad"))
    assert pair.extra_messages == 1


@pytest.mark.parametrize("tools", [[], "[]", "", "null", None])
def test_an_empty_list_of_tools_is_none(tools: Any) -> None:
    assert read(tools=tools).tools is None


def test_tools_and_arguments_given_as_json_texts_are_parsed() -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    assert read(tools=json.dumps([tool])).tools == [tool]
    assert read(tools=[json.dumps(tool), tool]).tools == [tool, tool]
    bare = {"name": "weather", "function": None}
    assert read(tools=[bare]).tools == [{"name": "weather"}]
    pair = read(
        prompt=[user("p"), assistant("", tool_calls=call('{"city": "Rome"}'))],
        chosen=[assistant("", tool_calls=[{"name": "weather", "arguments": '{"city": "Oslo"}'}])],
        rejected=[assistant("", tool_calls=call("no JSON"))],
    )
    assert pair.messages[1]["tool_calls"] == call({"city": "Rome"})
    assert pair.chosen["tool_calls"] == [{"name": "weather", "arguments": {"city": "Oslo"}}]
    assert pair.rejected["tool_calls"] == call("no JSON")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"rejected": "-"},
            ['column "rejected" is missing (found: prompt, chosen)'],
        ),
        (
            {"chosen": None, "rejected": "-"},
            ['column "rejected" is missing (found: prompt, chosen)', 'column "chosen" is null'],
        ),
        (
            {"prompt": "-", "chosen": "-", "rejected": "-"},
            ['column "prompt" and "chosen" and "rejected" are missing (found: none)'],
        ),
        ({"chosen": "same", "rejected": "same"}, ['"chosen" and "rejected" are the same']),
        ({"chosen": "bad"}, ['"chosen" and "rejected" are the same']),
        ({"chosen": [assistant("bad")]}, ['"chosen" and "rejected" are the same']),
        ({"prompt": "  ", "chosen": ""}, ['"prompt" is empty', '"chosen" is empty']),
        ({"chosen": 7}, ['"chosen" must be text or a list of messages, found int']),
        ({"chosen": []}, ['"chosen" is an empty list of messages']),
        ({"chosen": ["x"]}, ['"chosen[0]" must be a message {"role", "content"}, found str']),
        (
            {"chosen": [user("p"), assistant("good")]},
            [
                '"chosen" must begin with the assistant\'s message, found role "user" '
                '(the prompt belongs in "prompt")'
            ],
        ),
        (
            {"prompt": [{"role": "human", "content": "p"}]},
            [f"\"prompt[0]\" has role 'human' (allowed: {ROLES})"],
        ),
        (
            {"prompt": [{"role": ["user"]}]},
            [
                f"\"prompt[0]\" has role ['user'] (allowed: {ROLES})",
                '"prompt[0]" has no text in "content"',
            ],
        ),
        ({"chosen": [assistant("  ")]}, ['"chosen[0]" is an empty answer']),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            ['"prompt[0]" holds parts that are not text: images and audio are not read'],
        ),
        (
            {"chosen": [assistant("good", tool_calls="weather()")]},
            ['"chosen[0]" has tool calls that are not {"function": {"name": ...}}'],
        ),
        (
            {"chosen": [assistant("good", tool_calls=[{"function": {"arguments": {}}}])]},
            ['"chosen[0]" has tool calls that are not {"function": {"name": ...}}'],
        ),
        (
            {"chosen": [assistant("a")], "rejected": [assistant("a"), user("b"), assistant("c")]},
            ['"chosen" ends where the other continues: both need an answer of their own'],
        ),
        (
            {"chosen": [assistant("a"), user("b")], "rejected": [assistant("a"), user("c")]},
            ['"chosen" and "rejected" diverge at a message of role "user", not of the assistant'],
        ),
        (
            {"tools": "[{"},
            [
                '"tools" is text but not JSON (Expecting property name enclosed in double quotes: '
                "line 1 column 3 (char 2))"
            ],
        ),
        ({"tools": {"name": "x"}}, ['"tools" must be a list of {"function": {"name": ...}}']),
        ({"tools": [7]}, ['"tools" must be a list of {"function": {"name": ...}}']),
        (
            {"tools": ["weather"]},
            ['"tools" is text but not JSON (Expecting value: line 1 column 1 (char 0))'],
        ),
    ],
    ids=str,
)
def test_every_fault_of_a_row_is_reported(values: dict[str, Any], expected: list[str]) -> None:
    assert faults(**values) == expected


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


GOOD = json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"})


def test_all_files_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", GOOD)
    file = write(tmp_path / "b.jsonl", "", GOOD, GOOD)
    locations = [pair.location for pair in load_pairs([str(folder), file])]
    assert locations == [f"{folder}/train.jsonl:1", f"{file}:2", f"{file}:3"]
    assert len(load_pairs(file)) == 2


def test_one_error_names_every_bad_line_of_every_file(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", GOOD, '{"prompt": "p", "chosen": ""}', "{")
    second = write(tmp_path / "b.jsonl", GOOD, GOOD.replace("good", "bad"))
    with pytest.raises(OrpoError) as error:
        load_pairs([first, second])
    assert str(error.value) == (
        "3 bad lines in the data:\n"
        f'  {first}:2: column "rejected" is missing (found: prompt, chosen)\n'
        f'  {first}:2: "chosen" is empty\n'
        f"  {first}:3: not JSON: Expecting property name enclosed in double quotes at column 2\n"
        f'  {second}:2: "chosen" and "rejected" are the same\n'
        f"{HINT}"
    )


def test_lines_past_those_shown_are_named_by_number(tmp_path: Path) -> None:
    lines = ["{}"] * 22 + [GOOD] + ["{}"] * 3 + [GOOD, "{}"]
    file = write(tmp_path / "a.jsonl", *lines)
    with pytest.raises(OrpoError) as error:
        load_pairs(file)
    heading, *shown, more, hint = str(error.value).split("\n")
    assert heading == "26 bad lines in the data:"
    missing = 'column "prompt" and "chosen" and "rejected" are missing (found: none)'
    assert shown == [f"  {file}:{n}: {missing}" for n in range(1, 21)]
    assert more == f"  ... and 6 more: {file}:21-22, 24-26, 28"
    assert hint == HINT


@pytest.mark.parametrize("content", ["", "\n\r\n", "\ufeff"], ids=["empty", "blank", "BOM"])
def test_an_empty_file_is_reported(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(OrpoError) as error:
        load_pairs([write(tmp_path / "b.jsonl", GOOD), file], flag="--valid-data")
    assert str(error.value) == f"--valid-data {file}: the file is empty.\n{HINT}"


def test_the_bundled_pairs_are_read() -> None:
    samples = Path(__file__).parents[3] / "orpo_mlx" / "data" / "samples"
    counts = {split: len(load_pairs(samples, splits=[split])) for split in ("train", "valid")}
    assert counts == {"train": 240, "valid": 40}


def test_a_column_without_a_name_is_not_part_of_a_pair(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"  # as pandas writes an index
    table.write_text(",system,prompt,chosen,rejected\n0,s,p,good,bad\n", encoding="utf-8")
    (pair,) = load_pairs(table)
    assert pair.prompt == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "p"},
    ]
