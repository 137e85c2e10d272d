"""Reasoning inside a content reaches the template where it reads it, or the row is refused."""

import pytest

from orpo_mlx.data.tokens.encode import resolve_thinking
from orpo_mlx.data.tokens.rendering.reasoning import split_reasoning
from tests import tiny
from tests.data.rows import assistant, build, call, notes_of, pair, refusal, texts, user
from tests.data.tokens.test_template import FORGETFUL

OPENING = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
ASK = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
BEGIN = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"


def template(answer: str, begin: str = BEGIN) -> str:
    """ChatML but for what it makes of an answer."""
    return (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        + answer
        + "{{ '<|im_end|>\n' }}{%- else %}"
        + ASK
        + "{%- endif %}{%- endfor %}"
        + begin
    )


# A channel of its own, by a key (gpt-oss; the key has no meaning in the history).
CHANNEL = template(
    "{%- if m.thinking and loop.last %}{{ '[analysis]' + m.thinking + '[final]' }}{%- endif %}"
    "{{ m.content }}"
)
# A key, or else what the content holds before </think> (Qwen3).
SPLITTER = template(
    "{%- set content, thought = m.content, m.reasoning_content %}"
    "{%- if thought is not string %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set content = content.split('</think>')[-1].strip() %}{%- endif %}{%- endif %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + content }}"
)
# A key alone, and a block in any case (Qwen 3.8); generation begins with its opening.
BLOCK = template(
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' + m.content }}",
    BEGIN.replace("assistant\n", "assistant\n<think>\n"),
)
# Parts of the content (Magistral).
IN_PARTS = template(
    "{%- if m.content is string %}{{ m.content }}{%- else %}{%- for p in m.content %}"
    "{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}"
    "{%- endfor %}{%- endif %}"
)
INLINE = ("<think>\nTwo pairs.\n</think>\n\nFour.", "<think>Hard.</think> Nine.")


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"),
    [
        (CHANNEL, "[analysis]Two pairs.[final]Four.", "[analysis]Hard.[final]Nine."),
        (BLOCK, "Two pairs.\n</think>\n\nFour.", "Hard.\n</think>\n\nNine."),
        (IN_PARTS, "[THINK]Two pairs.[/THINK]Four.", "[THINK]Hard.[/THINK]Nine."),
        (SPLITTER, INLINE[0], "<think>\nHard.\n</think>\n\nNine."),
        (tiny.CHATML, *INLINE),
        (FORGETFUL, "Two pairs.\n</think>\n\nFour.", "Hard.\n</think>\n\nNine."),
    ],
    ids=["channel", "block", "parts", "splitter", "none", "forgetful"],
)
def test_reasoning_in_the_content_is_written_where_the_template_has_it(
    name: str, chosen: str, rejected: str
) -> None:
    encoder = build(name, thinking=True)
    prompt, *answers = texts(encoder, pair("hello", *INLINE))
    assert [answer.removesuffix("<|im_end|>") for answer in answers] == [chosen, rejected]
    if name != tiny.CHATML:
        keyed = [
            assistant(text, reasoning_content=thought)
            for text, thought in (("Four.", "Two pairs."), ("Nine.", "Hard."))
        ]
        assert texts(encoder, pair("hello", *keyed)) == (prompt, *answers)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("name", [CHANNEL, SPLITTER, BLOCK, IN_PARTS, FORGETFUL])
def test_every_key_of_reasoning_is_read_by_every_template_that_has_one(name: str, key: str) -> None:
    keyed = [assistant(text, **{key: f"Why {text}"}) for text in ("Four.", "Nine.")]
    for answer in texts(build(name, thinking=True), pair("hello", *keyed))[1:]:
        assert "Why " in answer
    inline = {**keyed[0], "content": "<think>Why Four.</think>Four."}
    twice = texts(build(name, thinking=True), pair("hello", inline, keyed[1]))
    assert twice == texts(build(name, thinking=True), pair("hello", *keyed))


EMPTY = ("<think>\n\n</think>\n\nFour.", "</think>Nine.")


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"),
    [
        (CHANNEL, "Four.", "Nine."),
        (BLOCK, "\n</think>\n\nFour.", "\n</think>\n\nNine."),
        (IN_PARTS, "Four.", "Nine."),
        (SPLITTER, EMPTY[0], "<think>\n\n</think>\n\nNine."),
        (tiny.CHATML, *EMPTY),
        (FORGETFUL, "\n</think>\n\nFour.", "\n</think>\n\nNine."),
    ],
    ids=["channel", "block", "parts", "splitter", "none", "forgetful"],
)
def test_an_empty_block_is_neither_reasoning_nor_text(
    name: str, chosen: str, rejected: str
) -> None:
    answers = texts(build(name, thinking=True), pair("hello", *EMPTY))[1:]
    assert [answer.removesuffix("<|im_end|>") for answer in answers] == [chosen, rejected]
    with_key = pair("hello", assistant(EMPTY[0], thinking="hm"), EMPTY[1])
    if name in (CHANNEL, IN_PARTS):
        assert "hm" in texts(build(name, thinking=True), with_key)[1]


WRITE = "the template cannot write a response with "
BETWEEN, NEVER = (
    "reasoning between parts of its text",
    "reasoning that <think> opens and nothing closes",
)


@pytest.mark.parametrize("name", [CHANNEL, BLOCK, IN_PARTS])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("Well. <think>hm</think> yes", BETWEEN),
        ("<think>a</think>b<think>c</think>d", BETWEEN),
        ("<think>\nI was cut o", NEVER),
        ("yes <think>cut", BETWEEN),
        ("yes <think></think> no", BETWEEN),
    ],
)
def test_reasoning_that_a_key_cannot_say_is_refused(name: str, content: str, why: str) -> None:
    message = refusal(build(name, thinking=True), pair("hello", content, INLINE[1]))
    assert message.endswith(f"f:1: {WRITE}{why}")


def test_two_different_reasonings_are_refused() -> None:
    row = pair("hello", assistant("<think>a</think>yes", thinking="b"), INLINE[1])
    for name in (CHANNEL, SPLITTER, BLOCK):
        message = refusal(build(name, thinking=True), row)
        assert "different reasoning in two of its keys" in message or "drops the" in message


def test_open_reasoning_stays_where_the_template_writes_it_as_it_is_generated() -> None:
    name = template(
        "{{ ('<think>' + m.reasoning_content + '</think>' if m.reasoning_content) ~ m.content }}"
    )
    answer = texts(build(name, thinking=True), pair("hello", "<think>\nI was cut o", INLINE[1]))[1]
    assert answer == "<think>\nI was cut o<|im_end|>"
    assert texts(build(), pair("hello", "<think>\ncut", "x"))[1] == "<think>\ncut<|im_end|>"


@pytest.mark.parametrize("name", [CHANNEL, SPLITTER, tiny.CHATML])
@pytest.mark.parametrize("mark", ["`</think>`", '"</think>"', "'<think>' and '</think>'"])
def test_a_text_about_the_mark_is_text(name: str, mark: str) -> None:
    content = f"The mark {mark} ends it."
    assert split_reasoning(assistant(content)) == ([], content)
    answer = texts(build(name), pair("hello", content))[1]
    assert answer.removesuffix("<|im_end|>").endswith(content)
    assert "[analysis]" not in answer
    assert resolve_thinking("auto", [pair("hello", content)]) == (False, None)


def test_a_template_that_cuts_a_text_about_the_mark_is_refused() -> None:
    cutter = template("{{ m.content.split('</think>')[-1] }}")
    assert refusal(build(cutter), pair("hello", "The mark `</think>` ends it.")).endswith(
        "f:1: the template reads the </think> in the text of a response as the end of reasoning"
    )


def test_reasoning_without_its_opening_is_reported_where_it_is_moved() -> None:
    row = pair("hello", "hm</think>yes", INLINE[1])
    assert notes_of(build(CHANNEL), row) == [
        "1 x response whose text before </think> is read as reasoning, without <think>"
    ]
    assert notes_of(build(BLOCK, thinking=True), row) == []


def test_reasoning_of_the_history_is_the_templates_too() -> None:
    history = [user("one"), assistant(INLINE[0]), user("two")]
    encoder = build(CHANNEL)
    assert notes_of(encoder, pair(history)) == [
        "1 x reasoning of a message in a prompt (assistant), dropped by the template"
    ]
    ids = encoder.prompt_ids(history)
    assert encoder.tokenizer.decode(ids) == (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = texts(build(BLOCK, thinking=True), pair(history))[0]
    assert prompt.count("<think>\nTwo pairs.\n</think>\n\nFour.<|im_end|>") == 1


@pytest.mark.parametrize("name", [CHANNEL, IN_PARTS])
def test_reasoning_that_a_prompt_begins_is_refused_where_it_is_another_text(name: str) -> None:
    begun = [user("hello"), assistant("<think>\nTwo")]
    row = pair(begun, " pairs.</think>Four.", " trees.</think>Nine.")
    assert "the template rewrites" in refusal(build(name, thinking=True), row)
    assert texts(build(), row)[1] == " pairs.</think>Four.<|im_end|>"
    row = pair([user("hello"), assistant("Well,")], " four.", " nine.")
    assert texts(build(name, thinking=True), row)[1] == " four.<|im_end|>"
    alone = pair([assistant("Well, ")], "four.", "<think>hm</think>nine.")
    assert "reasoning between parts" in refusal(build(name, thinking=True), alone)


def test_an_answer_without_reasoning_does_not_fit_a_prompt_that_opens_it() -> None:
    encoder = build(FORGETFUL)
    message = refusal(encoder, pair("hello", INLINE[0], "Nine."))
    assert "for this template every response needs its reasoning" in message
    row = pair("hello", assistant("", tool_calls=call("find"), reasoning="hm"), INLINE[1])
    assert "drops the tool call of a response" in refusal(encoder, row)
