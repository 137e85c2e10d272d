"""What a row says around its messages and in their parts: read, or named with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.pairs.messages import messages_of
from orpo_mlx.errors import OrpoError
from tests.data.pairs.recognized import ReadRows, read
from tests.data.row_files import write_rows
from tests.data.rows import assistant, system, user

FUNCTION = {"name": "find", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
YES, NO = [assistant("yes")], [assistant("no")]


def row(prompt: Any, **keys: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": YES, "rejected": NO, **keys}


def asked(parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts}


def notes(*values: dict[str, Any]) -> dict[str, int]:
    result = ReadRows(*values)
    assert not result.report.problems
    return dict(result.report.located_notes())


def faults(*values: dict[str, Any]) -> list[str]:
    return [problem.fault for problem in ReadRows(*values).report.problems]


def content_of(parts: Any, **keys: Any) -> Any:
    wrong: list[str] = []
    (message,) = messages_of("m", [{"role": "assistant", "content": parts, **keys}], "user", wrong)
    assert wrong == []
    return message


def content_faults(parts: Any, **keys: Any) -> list[str]:
    wrong: list[str] = []
    messages_of("m", [{"role": "assistant", "content": parts, **keys}], "user", wrong)
    return wrong


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [json.dumps(TOOLS[0])]])
@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_tools_and_system_next_to_nested_messages_are_the_rows_own(column: str, tools: Any) -> None:
    flat = row([user("hi")])
    values = flat | {column: {"messages": flat[column], "tools": tools}}
    (pair,) = read(values)
    assert (pair.prompt, pair.tools) == ([user("hi")], TOOLS)
    nested = {"messages": [user("hi")], "system": "Be brief."}
    (pair,) = read(row(nested))
    assert pair.prompt == [system("Be brief."), user("hi")]


def test_a_system_text_around_two_conversations_begins_both() -> None:
    answers = {
        name: {"messages": [user("hi"), *own], "system": "Be brief."}
        for name, own in (("chosen", YES), ("rejected", NO))
    }
    (pair,) = read(answers)
    assert pair.prompt == [system("Be brief."), user("hi")]


def test_functions_are_tools_by_their_old_name() -> None:
    for values in (
        row([user("hi")], functions=[FUNCTION]),
        row([user("hi")], functions=json.dumps([FUNCTION])),
        row([user("hi")], functions=[FUNCTION], tools=TOOLS),
        row({"messages": [user("hi")], "functions": [FUNCTION]}),
    ):
        (pair,) = read(values)
        assert pair.tools == TOOLS
    (pair,) = read(row([user("hi")], functions="sine and cosine"))
    assert (pair.tools, pair.labels) == (None, {"functions": "sine and cosine"})


def test_what_two_locations_of_a_row_say_differently_is_a_fault() -> None:
    other = [{"type": "function", "function": {"name": "send"}}]
    nested = {"messages": [user("hi")], "tools": TOOLS}
    assert faults(row(nested, tools=other)) == ['"tools" and "prompt.tools" are different tools']
    twice = {"messages": [system("Be long."), user("hi")], "system": "Be brief."}
    assert faults(row(twice)) == ['"prompt.system" and the conversation have a system message each']
    assert faults(row({"messages": [user("hi")], "system": 7})) == [
        '"prompt.system" must be text, found int'
    ]
    assert faults(row({"messages": [user("hi")], "tools": [{"a": 1}]})) == [
        '"prompt.tools" must be a list of {"function": {"name": ...}}'
    ]


def test_keys_without_a_meaning_are_named_with_the_first_line_and_counted() -> None:
    openai = {"messages": [user("hi")], "parallel_tool_calls": True, "role": None, "seed": None}
    cached = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}, "image": None}]
    assert notes(row([user("hi")]), row(openai), row(openai), row([asked(cached)])) == {
        '"prompt.parallel_tool_calls", which is not read (first: f:2)': 2,
        '"prompt.content.cache_control", which is not read (first: f:4)': 1,
    }
    ranked = {
        "prompt": "hi",
        "answers": [
            {"answer": {"messages": own, "model": "m"}, "rank": rank}
            for rank, own in enumerate((YES, NO))
        ],
    }
    inner = asked([{"type": "text", "content": [{"type": "text", "text": "hi", "lang": "en"}]}])
    assert notes(row([inner])) == {'"prompt.content.lang", which is not read (first: f:1)': 1}
    assert notes(ranked) == {'"answers.model", which is not read (first: f:1)': 1}


def test_what_is_not_read_is_logged(tmp_path: Path) -> None:
    nested = {"messages": [user("hi")], "parallel_tool_calls": True}
    file = write_rows(tmp_path / "rows.jsonl", [row([user("a")]), row(nested)])
    lines: list[str] = []
    load_pairs(file, log=lines.append)
    assert lines[-1] == (f'1 x "prompt.parallel_tool_calls", which is not read (first: {file}:2)')


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "value": "hello there"}, {"type": "text", "text": " second"}], None),
        ([{"type": "text", "content": "hello there"}, {"text": " second"}], None),
        (["hello there", {"type": "output_text", "text": " second"}], None),
        ([{"type": "text", "text": None, "value": "hello there second"}], None),
        ([{"type": "refusal", "refusal": "I will not."}], "I will not."),
        ([{"type": "text", "text": "a", "value": "a"}], "a"),
    ],
)
def test_the_text_of_every_part_is_read(parts: Any, text: str | None) -> None:
    assert content_of(parts) == assistant(text or "hello there second")


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "thinking", "thinking": "hm", "signature": "xyz"},
        {"type": "reasoning", "text": "hm"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    ],
)
def test_parts_of_reasoning_are_the_messages_reasoning(thought: dict[str, Any]) -> None:
    text = {"type": "text", "text": "yes"}
    assert content_of([thought, text]) == assistant("yes", reasoning_content="hm")
    assert content_of([thought, text], thinking="hm") == assistant("yes", thinking="hm")
    assert content_faults([text, thought]) == [
        '"m[0]" has reasoning after text: its reasoning must come first'
    ]
    assert content_faults([thought, text], thinking="no") == [
        '"m[0]" has reasoning in "thinking" and other in its parts'
    ]


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"type": "image_url", "image_url": "x"}, "holds parts that are not text: images and"),
        (7, "holds parts that are not text: images and audio are not read"),
        ({"type": "tool_use", "name": "f"}, 'holds a part of type "tool_use", which is not read'),
        ({"type": "text", "body": "x"}, "holds a part without text (its keys: type, body)"),
        ({"type": "text", "text": 7}, 'holds a part whose "text" is not text (found int)'),
        ({"text": "a", "value": "b"}, "holds a part with several texts (text, value)"),
    ],
)
def test_a_part_that_cannot_be_read_is_named_for_what_it_is(part: Any, fault: str) -> None:
    (message,) = content_faults([{"type": "text", "text": "yes"}, part])
    assert message.startswith(f'"m[0]" {fault}')


def test_parts_that_say_value_differ_as_their_texts_do() -> None:
    def part(text: str) -> list[dict[str, str]]:
        return [{"type": "text", "value": text}]

    chosen, rejected = (
        [asked(part("hi")), {**asked(part(text)), "role": "assistant"}] for text in ("yes", "no")
    )
    (pair,) = read({"chosen": chosen, "rejected": rejected})
    assert (pair.chosen, pair.rejected) == (YES[0], NO[0])


def test_a_role_with_a_value_and_a_speaker_with_a_content_are_read() -> None:
    for message in ({"role": "user", "value": "hi"}, {"from": "human", "content": "hi"}):
        (pair,) = read(row([message]))
        assert pair.prompt == [user("hi")]
    wrong = {"from": "human", "value": "a", "content": "b"}
    assert faults(row([wrong])) == ['"prompt[0]" has two texts, in "value" and in "content"']


CALL: dict[str, Any] = {"name": "find", "arguments": {"city": "rome"}}
CALLS = [{"type": "function", "function": CALL}]


def called(arguments: str) -> dict[str, Any]:
    function = {"name": "find", arguments: CALL["arguments"]}
    return {"type": "function", "function": function}


@pytest.mark.parametrize(
    "keys",
    [
        {"function_call": {"name": "find", "arguments": '{"city": "rome"}'}},
        {"function_call": json.dumps(CALL)},
        {"function_call": CALL, "tool_calls": None},
        {"function_call": CALL, "tool_calls": CALLS},
        {"function_call": {"name": None, "arguments": None}, "tool_calls": CALLS},
        {"tool_calls": [called("parameters")]},
        {"tool_calls": CALLS, "function_call": []},
        {"tool_calls": [called("args")]},
    ],
)
def test_calls_by_their_other_names_are_tool_calls(keys: dict[str, Any]) -> None:
    assert content_of(None, **keys) == assistant("", tool_calls=CALLS)


def test_a_function_call_that_contradicts_the_tool_calls_is_a_fault() -> None:
    other = {"name": "send", "arguments": {}}
    for called in (other, {"city": "rome"}, "find"):
        (fault,) = content_faults("x", function_call=called, tool_calls=CALLS)
        assert fault.startswith('"m[0]" has a "function_call" that is not')


def test_a_bad_nested_row_is_reported_with_its_line(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row([asked([{"type": "sound", "x": 1}])])])
    with pytest.raises(OrpoError, match=r'rows\.jsonl:1: "prompt\[0\]" holds a part of type "sou'):
        load_pairs(file)
