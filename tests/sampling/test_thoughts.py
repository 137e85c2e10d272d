import pytest

from orpo_mlx.sampling.thoughts import MARKS, Parts, split_thought

OTHER = ("<|channel>thought", "<channel|>")


@pytest.mark.parametrize(
    ("text", "marks", "prompt", "parts"),
    [
        ("\nHello ", MARKS, "user: hi", Parts("", "Hello", False)),
        ("<think>\nhm\n</think>\n\nHello", MARKS, "", Parts("hm", "Hello", False)),
        ("\n<think>hm</think>Hello", MARKS, "", Parts("hm", "Hello", False)),
        ("<think></think>Hello", MARKS, "", Parts("", "Hello", False)),
        ("<think>hm", MARKS, "", Parts("hm", "", True)),
        ("hm\n</think>\n\nHello", MARKS, "assistant: <think>\n", Parts("hm", "Hello", False)),
        ("hm", MARKS, "assistant: <think>\n", Parts("hm", "", True)),
        ("", MARKS, "assistant: <think>", Parts("", "", True)),
        ("a <think> is a mark", MARKS, "", Parts("", "a <think> is a mark", False)),
        ("<|channel>thought\nhm<channel|>Hello", OTHER, "", Parts("hm", "Hello", False)),
        ("<think>hm</think>Hello", OTHER, "", Parts("", "<think>hm</think>Hello", False)),
    ],
)
def test_a_thought_and_its_answer_are_apart(
    text: str, marks: tuple[str, str], prompt: str, parts: Parts
) -> None:
    assert split_thought(text, marks, prompt) == parts
