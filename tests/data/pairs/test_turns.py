"""Texts that hold a conversation: where its turns part, and how a template's text is known."""

import pytest

from orpo_mlx.data.pairs.turns import (
    has_steered_turns,
    has_turns,
    is_rendered,
    rendered_prompt,
    turns_of,
)
from tests.data.rows import assistant, user


def test_turns_part_at_a_speaker_after_an_empty_line_only() -> None:
    text = (
        "\n\nHuman: Is it\nHuman: or not?\n\nAssistant: It is.\n\nSo says Human: me.\n\nHuman: OK"
    )
    assert has_turns(text)
    assert turns_of(text) == [
        user("Is it\nHuman: or not?"),
        assistant("It is.\n\nSo says Human: me."),
        user("OK"),
    ]


@pytest.mark.parametrize(
    "text", ["", "Human: hello", "A Human: hello\n\nAssistant: yes", "\n\nAssistant: yes"]
)
def test_texts_without_both_speakers_have_no_turns(text: str) -> None:
    assert not has_turns(text)


def test_steered_turns_begin_with_the_users_text() -> None:
    text = "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree"
    assert has_steered_turns(text)
    expected = [user("one"), assistant("two"), user("three")]
    assert turns_of(text) == expected
    assert turns_of(f"<extra_id_1>User\n{text}\n<extra_id_1>Assistant\n") == expected
    assert not has_steered_turns("What is <extra_id_1>?")


@pytest.mark.parametrize(
    "text",
    [
        "What is <|im_start|>?",
        "[IN ST] x",
        "<s>hello",
        "",
        "<user> hello",
        "[INST",
    ],
)
def test_texts_that_do_not_begin_with_a_marker_are_not_rendered(text: str) -> None:
    assert not is_rendered(text)


def test_a_shared_start_ends_where_the_last_shared_answer_opens() -> None:
    first = "<|user|>\na\n<|assistant|>\nb\n<|user|>\nc\n<|assistant|>\n"
    assert rendered_prompt(f"{first}yes", f"{first}no") == first
    assert rendered_prompt(f"{first}yes", f"{first}yesterday") == first
    assert rendered_prompt("<|user|>\na", "<|user|>\nb") == ""
