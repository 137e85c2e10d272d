import pytest

from orpo_mlx.data.quality.texts import has_code, normalize, shingles, text_of, width


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes.", "yes"),
        ("**Buy** it, then  wait!", "buy it then wait"),
        ("“Größe”", "GRÖSSE"),
        ("你好，世界！", "你好 世界"),
        ("- a\n- b", "a b"),
    ],
)
def test_trivia_do_not_tell_texts_apart(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        ("3.5", "35"),
        ("2 + 2", "2 - 2"),
        ("x == y", "x != y"),
        ("👍", "👎"),
        ("C++", "C"),
        ("5 €", "5 $"),
        ("def f(a):\n    return A", "def f(a):\n    return a"),
    ],
)
def test_what_carries_meaning_distinguishes_texts(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Take 3-5 eggs (large), flour; and 24/7 patience.", False),
        ("Call the file(s) by name: a, b.", False),
        ("Use `git` or\n```\ngit status\n```", True),
        ("import numpy as np; x = np.ones(3)", True),
        ("if (a == b) { return c; }", True),
    ],
)
def test_code_is_distinguished_from_prose(text: str, code: bool) -> None:
    assert has_code(text) is code


def test_shingles_are_words_or_characters_in_scripts_without_spaces() -> None:
    assert shingles("a b c d") == ["a b c", "b c d"]
    assert shingles("a b") == ["a b"]
    assert shingles("") == []
    assert shingles("一二三四五六") == ["一 二 三 四 五", "二 三 四 五 六"]


def test_a_character_without_spaces_is_as_wide_as_three_letters() -> None:
    assert (width("abc"), width("茶a")) == (3, 4)


def test_reasoning_and_tool_calls_are_part_of_a_message() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
    message = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]}
    assert text_of(message) == (
        'Hm.\n[{"function": {"arguments": {"city": "Köln"}, "name": "weather"}}]'
    )
