"""Thought, text and end of what was drawn."""

import pytest

from orpo_mlx.sampling.texts import AnswerText, split_answer


@pytest.mark.parametrize(
    ("content", "opened", "ended", "expected"),
    [
        (" Four.\n", False, True, ("", " Four.\n", "stop")),
        ("Four", False, False, ("", "Four", "length")),
        ("", False, True, ("", "", "stop")),
        ("<think>\nTwo pairs.\n</think>\n\nFour.", False, True, ("Two pairs.", "Four.", "stop")),
        ("\nTwo pairs.\n</think>\n\nFour.", True, True, ("Two pairs.", "Four.", "stop")),
        ("\nTwo pairs.\n</think>\n\nFo", True, False, ("Two pairs.", "Fo", "length")),
        ("\nTwo pa", True, False, ("Two pa", "", "thought")),
        ("\nTwo pa", True, True, ("Two pa", "", "thought")),
        ("", True, True, ("", "", "thought")),
        ("<think>\nTwo pa", False, True, ("Two pa", "", "thought")),
        ("<think>", False, False, ("", "", "thought")),
        ("<think>\n\n</think>\n\nFour.", False, True, ("", "Four.", "stop")),
        ("</think>Four.", True, True, ("", "Four.", "stop")),
        ("Yes. <think>hm", False, False, ("hm", "Yes.", "thought")),
        ("a <think>b</think> c <think>d</think> e", False, True, ("b\nd", "a  c  e", "stop")),
        ("It writes `<think>` first.", False, True, ("", "It writes `<think>` first.", "stop")),
    ],
)
def test_an_answer_is_split_at_its_marks(
    content: str, opened: bool, ended: bool, expected: tuple[str, str, str]
) -> None:
    assert split_answer(content, opened=opened, ended=ended) == AnswerText(*expected)  # type: ignore[arg-type]
