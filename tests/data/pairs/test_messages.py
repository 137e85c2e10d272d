"""Messages as rows write them: who speaks, what is called, what is wrong."""

import json
from typing import Any

import pytest

from orpo_mlx.data.pairs.message_parts.tool_calls import tools_of
from orpo_mlx.data.pairs.messages import ROLES, messages_of, shared_start
from tests.data.rows import assistant, user

CALL = {"name": "find", "arguments": {"month": "May"}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"default": None}}}


def read(value: Any, role: str = "user") -> list[dict[str, Any]]:
    faults: list[str] = []
    messages = messages_of("turns", value, role, faults)
    assert faults == []
    return messages


def faults(value: Any) -> list[str]:
    faults: list[str] = []
    messages_of("turns", value, "user", faults)
    return faults


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("system", "system"),
        ("observation", "tool"),
        ("tool", "tool"),
    ],
)
def test_who_a_message_is_from_becomes_its_role(speaker: str, role: str) -> None:
    expected = [{"role": role, "content": "text"}]
    assert read([{"from": speaker, "value": "text"}]) == expected
    assert read([{"from": speaker, "value": "text", "role": None, "content": None}]) == expected


@pytest.mark.parametrize(
    ("written", "calls"),
    [(CALL, [CALL]), ([CALL, {"name": "now"}], [CALL, {"name": "now", "arguments": {}}])],
)
def test_a_function_call_in_text_becomes_tool_calls(written: Any, calls: list[Any]) -> None:
    (message,) = read([{"from": "function_call", "value": json.dumps(written)}])
    assert message == assistant(
        "", tool_calls=[{"type": "function", "function": call} for call in calls]
    )


def test_a_function_call_that_is_not_a_call_stays_text() -> None:
    assert read([{"from": "function_call", "value": "find(May)"}]) == [assistant("find(May)")]


def test_a_text_a_message_a_list_and_a_list_in_a_struct_are_the_same() -> None:
    forms: list[Any] = [
        "good",
        {"content": "good"},
        {"role": "assistant", "content": "good"},
        {"from": "gpt", "value": "good"},
        [{"role": "assistant", "content": "good"}],
        {"messages": [{"role": "assistant", "content": "good"}]},
        {"messages": [{"from": "gpt", "value": "good"}], "role": None, "content": None},
    ]
    for form in forms:
        assert read(form, "assistant") == [assistant("good")]


def test_keys_that_are_null_or_an_empty_list_of_calls_say_nothing() -> None:
    message = {"role": "user", "content": "p", "name": None, "tool_calls": [], "reasoning": None}
    assert read([message]) == [user("p")]


def test_arguments_in_json_text_are_those_of_an_object() -> None:
    call: dict[str, Any] = {"function": {"name": "find", "arguments": {"year": None}}}
    (message,) = read([assistant("", tool_calls=[call])])
    call["function"]["arguments"] = '{"year": null}'
    assert [message] == read([assistant("", tool_calls=[call])])
    assert message["tool_calls"] == [{"function": {"name": "find", "arguments": {"year": None}}}]


def test_tools_keep_what_their_json_holds() -> None:
    faults: list[str] = []
    for written in (json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL]):
        assert tools_of(written, faults) == [TOOL]
    assert faults == []


def test_every_fault_of_a_list_is_reported_with_its_index() -> None:
    allowed = ", ".join(ROLES)
    assert faults(
        [
            {"from": "narrator", "value": "x"},
            "text",
            {"role": "user"},
            {"from": "gpt", "value": ""},
            {"role": "user", "content": [{"type": "image"}]},
            {"from": "human", "value": 7},
        ]
    ) == [
        f"\"turns[0]\" has role 'narrator' (allowed: {allowed})",
        '"turns[1]" must be a message {"role", "content"}, found str',
        '"turns[2]" has no text in "content"',
        '"turns[3]" is an empty answer',
        '"turns[4]" holds parts that are not text: images and audio are not read',
        '"turns[5]" has no text in "content"',
    ]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (" \n", '"turns" is empty'),
        ([], '"turns" is an empty list of messages'),
        ({"messages": []}, '"turns.messages" is an empty list of messages'),
        (7, '"turns" must be text or a list of messages, found int'),
        ({"text": "x"}, '"turns" has no text in "content"'),
    ],
    ids=str,
)
def test_what_is_not_a_message_is_reported(value: Any, fault: str) -> None:
    assert faults(value) == [fault]


def test_conversations_share_what_they_begin_with() -> None:
    first = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert shared_start(first, [*first[:3], assistant("e")]) == 3
    assert shared_start(first, first) == 4
    assert shared_start(first, [assistant("x")]) == 0


@pytest.mark.parametrize(
    "content", ["", " \n", [], [{"type": "text", "text": ""}], [{"type": "text", "text": None}]]
)
def test_an_answer_without_text_is_empty_in_either_form(content: object) -> None:
    faults: list[str] = []
    messages_of("chosen", [{"role": "assistant", "content": content}], "assistant", faults)
    assert faults == ['"chosen[0]" is an empty answer']
