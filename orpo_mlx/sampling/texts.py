"""What was drawn, as thought and text: where each begins, and how it ended."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from orpo_mlx.data.tokens.rendering.answer_tail import OPENED
from orpo_mlx.data.tokens.rendering.reasoning import CONTENT, ends_inside, split_content

TAIL_TOKENS = 16  # of a prompt, in which its template may open a thought
OPENING = "<think>"


class AnswerText(NamedTuple):
    """An answer without its marks and its end token."""

    thought: str
    text: str
    finish: Literal["stop", "length", "thought"]


def opens_thought(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether the ids of a prompt end with the opening of a thought, as some templates do."""
    return OPENED.search(decode(tokenizer, prompt[-TAIL_TOKENS:])) is not None


def split_answer(content: str, *, opened: bool, ended: bool) -> AnswerText:
    """Thought and text of what was drawn; `opened`: the prompt began a thought."""
    whole = OPENING + content if opened else content
    pieces = split_content(whole)
    thought = "\n".join(text.strip() for kind, text in pieces if kind != CONTENT)
    text = "".join(text for kind, text in pieces if kind == CONTENT)
    if "think>" not in whole:
        return AnswerText("", content, "stop" if ended else "length")
    if ends_inside(whole):
        return AnswerText(thought, text.strip(), "thought")
    return AnswerText(thought, text.lstrip(), "stop" if ended else "length")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens and all."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
