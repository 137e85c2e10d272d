"""Messages to text: the prompt, what an answer adds to it, and what a template loses."""

import datetime as dt
import json

import pytest

from orpo_mlx.data.tokens.encode import encode_pairs, resolve_thinking
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.errors import OrpoError
from tests import tiny
from tests.data.rows import (
    assistant,
    build,
    call,
    decoded,
    lines_of,
    notes_of,
    pair,
    refusal,
    system,
    texts,
    user,
)

# What reasoning models share: an empty block where thinking is off, no reasoning in the history.
THINKER = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{%- endif %}"
    "{{ m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# DeepSeek-R1's habit: generation begins inside the reasoning, which no answer keeps.
FORGETFUL = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{ 'A:' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{%- else %}{{ 'U:' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'A:<think>\n' }}{%- endif %}"
)
# Mistral's habit: the system message is written into the last turn if that is the user's.
LAST_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n' %}"
    "{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{ 'Q:' + (system if loop.last and system is defined else '') + m.content + ' A:' }}"
    "{%- else %}{{ ' ' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}"
)
NO_SYSTEM = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
CALLER = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content }}"
    "{%- for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments|tojson }}"
    "{%- endfor %}{{ '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant:{%- endif %}"
)


def test_a_prompt_that_cannot_be_rendered_for_generation_is_an_error() -> None:
    with pytest.raises(OrpoError) as error:
        build(NO_SYSTEM).prompt_ids([system("be kind")])
    assert str(error.value) == (
        "The prompt cannot be rendered: the template refuses a system message, and no user's "
        "follows it."
    )


def test_a_prompt_that_ends_with_an_answer_is_continued() -> None:
    prompt, chosen, _ = texts(
        build(), pair([user("hello"), assistant("My answer")], " is yes", " is no")
    )
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nMy answer"
    assert chosen == " is yes<|im_end|>"


def test_a_system_message_that_only_a_last_turn_holds_is_kept() -> None:
    messages = [system("be kind"), user("one"), assistant("two"), user("three")]
    assert texts(build(LAST_SYSTEM), pair(messages)) == (
        "Q:one A: two<|im_end|>Q:be kind\nthree A:",
        " please check<|im_end|>",
        " later<|im_end|>",
    )


def test_the_text_of_an_answer_is_not_read_after_another_opening() -> None:
    template = LAST_SYSTEM.replace("' A:'", "(' B:' if loop.last and system else ' A:')")
    assert "the template rewrites" in refusal(build(template), pair([system("x"), user("y")]))
    assert texts(build(template), pair([user("y")]))[0] == "Q:y A:"


def test_prompt_and_response_are_never_cut_where_texts_part_by_chance() -> None:
    message = refusal(
        build(FORGETFUL),
        pair(chosen="<think>\nhm\n</think>yes", location="f:1"),
        pair([system("x"), user("y"), assistant("<think>\na"), user("z")], location="f:2"),
    )
    why = (
        "generation opens <think> at the end of the prompt, and this response has no reasoning to "
        "follow it: for this template every response needs its reasoning (in reasoning_content, "
        "or as <think>...</think> before its text); else give a template that opens none with "
        "--chat-template FILE"
    )
    assert message == (
        "2 rows cannot be rendered with the chat template of this base:\n"
        f"  f:1: {why}\n"
        f"  f:2: {why}"
    )


def test_every_refused_row_is_named_with_the_template() -> None:
    encoder = build(NO_SYSTEM + FORGETFUL, template_name="--chat-template r1.jinja")
    message = refusal(encoder, *(pair(location=f"f:{n}") for n in range(1, 31)))
    heading, *rows, more = message.split("\n")
    assert heading == "30 rows cannot be rendered with --chat-template r1.jinja:"
    assert [row.split(": ")[0] for row in rows] == [f"  f:{n}" for n in range(1, 21)]
    assert more == "  ... and 10 more"


def test_a_template_with_a_mistake_is_an_error_of_its_own() -> None:
    message = refusal(build("{% for m in messages %}\n{{ m.content }"), pair())
    assert message.startswith("The chat template is broken: line 2: unexpected '}'")


@pytest.mark.parametrize(
    "code",
    [
        "messages.append(1)",
        "messages[0].update(role='x')",
        "messages.__class__.__mro__",
        "''.__class__.__subclasses__()",
    ],
)
def test_a_template_stays_in_its_sandbox_every_time(code: str) -> None:
    harmless = "{{ messages[0].items() | length }}{{ messages.index(messages[0]) }}"
    template = harmless + "{{ " + code + " }}" + "{{ messages[0].content }}"
    encoder = build(template)
    before = user("hello")
    for _ in range(3):
        try:
            text = encoder.template.render([before], add_generation_prompt=True)
        except RefusedError as error:
            assert "unsafe" in str(error) or "undefined" in str(error)
        else:
            assert text == "20hello"  # an attribute that is kept from it is nothing
        assert before == user("hello")


def test_an_empty_system_message_is_none() -> None:
    messages = [user("hello")]
    bare = texts(build(), pair(messages))
    assert texts(build(), pair([system(" "), *messages])) == bare
    assert refusal(build(), pair([system("")])).endswith(
        "f:1: the prompt holds nothing but an empty system message"
    )


def test_a_refused_system_message_goes_before_the_next_users() -> None:
    encoder = build(
        "{%- for m in messages %}{%- if m.role == 'system' %}{{ raise_exception('no') }}"
        "{%- endif %}{%- endfor %}" + tiny.CHATML
    )
    row = pair([system("be kind"), user("one"), assistant("two"), system("be short"), user("six")])
    (encoded,), report = (
        encode_pairs([row, pair(location="f:2")], encoder)[0][:1],
        notes_of(encoder, row),
    )
    assert decoded(encoder, encoded)[0] == (
        "<|im_start|>user\nbe kind\n\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nbe short\n\nsix<|im_end|>\n<|im_start|>assistant\n"
    )
    assert report == [
        "1 x system message put before the next user message (the template refuses the role)"
    ]


def test_thinking_is_on_if_a_response_holds_reasoning_and_both_kinds_are_counted() -> None:
    plain = pair()
    reasoned = pair(chosen=assistant("yes", reasoning_content="hm"))
    inline = pair(chosen="<think>\nhm\n</think>\n\nyes", rejected="hm</think>no")
    assert resolve_thinking("auto", [plain, plain]) == (False, None)
    assert resolve_thinking("auto", [inline, inline]) == (True, None)
    assert resolve_thinking("on", [plain]) == (True, None)
    assert resolve_thinking("off", [inline]) == (False, None)
    assert resolve_thinking("auto", [pair(chosen="<think>\n\n</think>\n\nyes")]) == (False, None)
    sentence = "3 responses hold reasoning, 3 do not: rendered with --thinking "
    assert resolve_thinking("auto", [plain, reasoned, inline]) == (True, sentence + "on.")
    assert resolve_thinking("off", [plain, reasoned, inline]) == (False, sentence + "off.")


def test_an_empty_block_belongs_to_the_prompt_and_reasoning_to_the_response() -> None:
    opening = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    prompt, chosen, _ = texts(build(THINKER), pair())
    assert (prompt, chosen) == (opening + "<think>\n\n</think>\n\n", "please check<|im_end|>")
    reasoned = pair(
        chosen=assistant("yes", reasoning_content="why not"),
        rejected=assistant("no", reasoning_content="why"),
    )
    assert texts(build(THINKER, thinking=True), reasoned) == (
        opening,
        "<think>\nwhy not\n</think>\n\nyes<|im_end|>",
        "<think>\nwhy\n</think>\n\nno<|im_end|>",
    )


def test_a_row_that_needs_the_other_thinking_switch_gets_it_and_is_counted() -> None:
    answers = [assistant(t, reasoning_content="hm") for t in ("yes", "no")]
    encoder = build(THINKER)
    (row, plain), report = encode_pairs([pair("hello", *answers), pair()], encoder)
    assert decoded(encoder, row)[0].endswith("<|im_start|>assistant\n")
    assert decoded(encoder, row)[1] == "<think>\nhm\n</think>\n\nyes<|im_end|>"
    assert decoded(encoder, plain)[0].endswith("</think>\n\n")
    assert lines_of(report) == ["1 x pair that can only be rendered with --thinking on, not off"]


def test_a_row_that_the_template_refuses_with_one_switch_gets_the_other() -> None:
    strict = "{%- if enable_thinking and not messages[-1].reasoning_content and not "
    strict += "add_generation_prompt %}{{ raise_exception('think!') }}{%- endif %}"
    encoder = build(strict + THINKER, thinking=True)
    assert notes_of(encoder, pair()) == [
        "1 x pair that can only be rendered with --thinking off, not on"
    ]


def test_template_arguments_reach_the_template() -> None:
    encoder = build(THINKER, arguments={"enable_thinking": True})
    assert texts(encoder, pair())[0].endswith("<|im_start|>assistant\n")


def test_the_clock_of_a_template_shows_the_one_date() -> None:
    clock = "{{ strftime_now('%d %b %Y') + strftime_now( \"%Y-%m-%d\" ) }}"
    encoder = build(clock + tiny.CHATML, date=dt.date(2001, 2, 3))
    assert texts(encoder, pair())[0].startswith("03 Feb 20012001-02-03<|im_start|>user")
    ids = encoder.prompt_ids([user("hello")])
    assert encoder.tokenizer.decode(ids).startswith("03 Feb 20012001-02-03<|im_start|>user")


def test_reasoning_that_the_history_loses_is_counted() -> None:
    history = [user("one"), assistant("two", reasoning_content="hm"), user("three")]
    assert notes_of(build(THINKER), pair(history)) == [
        "1 x reasoning of a message in a prompt (assistant), dropped by the template"
    ]


def test_a_response_that_loses_something_is_refused() -> None:
    row = pair(
        chosen=assistant("yes", reasoning_content="hm"), rejected=assistant("no", thinking="hm")
    )
    assert refusal(build(), row, pair()) == (
        "1 row cannot be rendered with the chat template of this base:\n"
        "  f:1: the template drops the reasoning of a response"
    )
    row = pair(rejected=assistant("no", tool_calls=call("weather", city="Rome"), reasoning="hm"))
    assert "drops the reasoning and the tool call of a response" in refusal(build(), row)
    shorten = tiny.CHATML.replace("message['content']", "message['content'][:8]")
    assert "drops the content of a response" in refusal(build(shorten), pair())


@pytest.mark.parametrize("lost", ["name", "key", "value", "number"])
def test_name_and_arguments_of_a_tool_call_are_looked_for(lost: str) -> None:
    calls = call("weather", city={"town": ["Rome"]}, days=3)
    part = {"name": "weather", "key": "town", "value": "Rome", "number": "3"}[lost]
    template = CALLER.replace("|tojson", f"|tojson|replace('{part}', '')")
    template = template.replace("c.function.name", f"c.function.name|replace('{part}', '')")
    row = pair(chosen=assistant("", tool_calls=calls))
    assert "drops the tool call of a response" in refusal(build(template), row)
    assert (
        texts(build(CALLER), row)[1] == 'weather{"city": {"town": ["Rome"]}, "days": 3}<|im_end|>'
    )


def test_texts_that_a_template_writes_as_json_are_found() -> None:
    template = CALLER.replace(
        "+ m.content ", "+ (m.content|tojson if m.role == 'tool' else m.content) "
    )
    messages = [user("x"), {"role": "tool", "content": '{"a": "line\none", "b": "é"}'}, user("y")]
    calls = call("mail", text='say "hi"\nand go', flag=True, none=None)
    prompt, chosen, _ = texts(build(template), pair(messages, assistant("", tool_calls=calls)))
    assert json.dumps(messages[1]["content"], ensure_ascii=False) in prompt
    assert r'"say \"hi\"\nand go"' in chosen


def test_arguments_are_written_out_for_a_template_that_adds_them_to_a_text() -> None:
    template = CALLER.replace("c.function.arguments|tojson", "c.function.arguments")
    row = pair(chosen=assistant("", tool_calls=call("weather", city="Zürich")))
    assert texts(build(template), row)[1] == 'weather{"city": "Zürich"}<|im_end|>'


def test_reasoning_inside_the_content_is_looked_for_piece_by_piece() -> None:
    row = pair(chosen="Well. <think>one\ntwo</think> three", rejected="<think>four</think>five")
    assert texts(build(), row)[1] == "Well. <think>one\ntwo</think> three<|im_end|>"
    template = tiny.CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    assert "drops the content and the reasoning of a response" in refusal(build(template), row)


def test_tools_that_a_template_ignores_are_counted() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert notes_of(build(), pair(tools=tools)) == ["1 x list of tools, dropped by the template"]
    assert texts(build("{{ tools|tojson }}" + tiny.CHATML), pair(tools=tools))
