"""What a model generated, as its thought and its answer."""

from typing import Any, NamedTuple

MARKS = ("<think>", "</think>")


class Parts(NamedTuple):
    """A generated text without the marks of its thought."""

    thought: str
    text: str
    is_open: bool  # it ended inside the thought


def thought_marks(tokenizer: Any) -> tuple[str, str]:
    """What a thought begins and ends with, by mlx-lm's tokenizer."""
    return (tokenizer.think_start, tokenizer.think_end) if tokenizer.has_thinking else MARKS


def split_thought(text: str, marks: tuple[str, str], prompt: str) -> Parts:
    """The parts of what followed the text of a prompt, which may have begun the thought itself."""
    start, end = marks
    if not prompt.rstrip().endswith(start):
        if not text.lstrip().startswith(start):
            return Parts("", text.strip(), False)
        text = text.lstrip().removeprefix(start)
    thought, closed, answer = text.partition(end)
    return Parts(thought.strip(), answer.strip(), not closed)
