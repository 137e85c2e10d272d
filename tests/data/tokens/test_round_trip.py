"""What a template loses is found by order, and keys that it does not write are counted."""

from collections import Counter
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.tokens.encode import encode_pairs
from orpo_mlx.data.tokens.rendering.round_trip import lost_in_prompt, lost_parts
from tests import tiny
from tests.data.rows import assistant, build, call, lines_of, notes_of, pair, refusal, user
from tests.data.tokens.test_template import CALLER


def called(*names: str, **arguments: Any) -> Message:
    return assistant("", tool_calls=[c for name in names for c in call(name, **arguments)])


@pytest.mark.parametrize(
    ("message", "text", "lost"),
    [
        (assistant("yes", reasoning="hm"), "hm yes", []),
        (assistant("yes", reasoning="hm"), "yes hm", ["content"]),
        (assistant("no", reasoning="no idea"), "no idea", ["content"]),
        (assistant("<think>hm</think>yes"), "hm\n\nyes", []),
        (assistant("<think>hm</think>yes"), "yes", ["reasoning"]),
        (assistant("<think>hm</think>yes", reasoning="hm"), "hm yes", []),
        (called("f", days=3), "f days 3", []),
        (called("f", days=3), "f days 13", ["tool call"]),
        (called("f", days=3), "3 f days", ["tool call"]),
        (called("f", days=3), "f days 3.5", ["tool call"]),
        (called("f", days=3, all=None), "f all null days 3", []),
        (called("f", days=3, all=True), "f: all=True, days=3", []),
        (called("f", "f", city="Rome"), "f city Rome f city Rome", []),
        (called("f", "f", city="Rome"), "f city Rome", ["tool call"]),
        (called("f", "g", city="Rome"), "g city Rome f city Rome", ["tool call"]),
        (user("<think>hm</think>yes"), "<think>hm</think>yes", []),
        (user("<think>hm</think>yes"), "hm yes", ["content"]),
    ],
)
def test_parts_of_a_message_follow_each_other(message: Message, text: str, lost: list[str]) -> None:
    assert lost_parts(message, text) == lost


def test_messages_of_a_prompt_follow_each_other_and_a_system_message_may_be_last() -> None:
    messages = [{"role": "system", "content": "short"}, user("yes"), assistant("yes"), user("go")]
    assert lost_in_prompt(messages, "yes yes go short") == []
    assert lost_in_prompt(messages, "yes go short") == [("content", "assistant")]
    assert lost_in_prompt(messages, "yes  yes go") == [("content", "system")]
    spaced = [user("a\n b"), assistant("<think>x</think>c"), user("d")]
    assert lost_in_prompt(spaced, "a b c d") == [("reasoning", "assistant")]


def test_text_and_calls_of_a_message_come_in_either_order_and_results_after_their_calls() -> None:
    looking = called("f", city="Rome") | {"content": "look"}
    result = {"role": "tool", "content": "sun"}
    messages = [user("go"), looking, result, result, user("so")]
    assert lost_parts(looking, "f city Rome look") == lost_parts(looking, "look f city Rome") == []
    assert lost_parts(looking, "f look city Rome") == ["tool call"]
    for prompt in ("go look f city Rome sun sun so", "go f city Rome sun sun look so"):
        assert lost_in_prompt(messages, prompt) == []
    assert lost_in_prompt(messages, "go sun f city Rome sun look so") == [("content", "tool")]
    assert lost_in_prompt(messages, "go f city Rome sun sun so") == [("content", "assistant")]


def test_a_message_that_another_repeats_is_missed() -> None:
    once = (
        "{%- for m in messages %}{%- if m.content not in messages[:loop.index0]|map("
        "attribute='content')|list %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}"
        "{%- endif %}{%- endfor %}"
    )
    history = [user("yes"), assistant("yes"), user("go")]
    assert notes_of(build(once), pair(history)) == [
        "1 x content of a message in a prompt (assistant), dropped by the template"
    ]


def test_the_second_of_two_like_calls_is_missed() -> None:
    template = CALLER.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    row = pair(chosen=called("find", "find", city="Rome"))
    assert "drops the tool call of a response" in refusal(build(template), row)


def test_tools_that_are_only_called_were_not_listed() -> None:
    history = [user("x"), called("weather", city="Rome"), {"role": "tool", "content": "sun"}]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert notes_of(build(CALLER), pair(history, tools=tools)) == [
        "1 x list of tools, dropped by the template"
    ]


NAMED = tiny.CHATML.replace("message['content']", "(message.name or '') + message['content']")


def test_keys_that_the_template_does_not_write_are_counted_with_their_first_row() -> None:
    plain, named = pair(location="f:1"), [user("hi") | {"name": "ann", "weight": 0.5, "id": None}]
    rows = [plain, pair(named, location="f:2"), pair(named, location="f:3")]
    _, report = encode_pairs(rows, build(NAMED))
    weight = '"weight" of a message (user), which the template does not write (first: f:2)'
    assert lines_of(report) == [f"2 x {weight}"]
    _, report = encode_pairs(rows, build())
    name = weight.replace("weight", "name")
    assert Counter(lines_of(report)) == Counter([f"2 x {weight}", f"2 x {name}"])
    own = ReadReport()
    own.add(report)
    assert own.located_notes() == report.located_notes()


def test_keys_of_answers_and_of_calls_are_counted_too() -> None:
    (written,) = call("find", city="Rome")
    written = written | {"id": "c1", "extra": 1, "function": written["function"] | {"strict": True}}
    row = pair(chosen=assistant("", tool_calls=[written], refusal="no"))
    assert sorted(notes_of(build(CALLER), row)) == [
        f'1 x "{key}" of a message (assistant), which the template does not write (first: f:1)'
        for key in ("refusal", "tool_calls.extra", "tool_calls.strict")
    ]
    whole = CALLER.replace("c.function.name + c.function.arguments|tojson", "c|tojson")
    assert len(notes_of(build(whole), row)) == 1


def test_what_a_tools_answer_repeats_of_its_call_is_not_counted() -> None:
    result = {"role": "tool", "name": "find", "tool_call_id": "c1", "content": "sun"}
    assert notes_of(build(CALLER), pair([user("x"), called("find"), result])) == []


def test_a_base_without_a_template_writes_texts_alone() -> None:
    row = pair([user("hi") | {"name": "ann"}])
    assert notes_of(build(None, ends=("<|endoftext|>",)), row) == [
        '1 x "name" of a message (user), which the template does not write (first: f:1)'
    ]
