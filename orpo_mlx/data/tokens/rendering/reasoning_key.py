"""The key of a message in which a template reads reasoning, learnt by trying."""

import re
from collections.abc import Callable

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS
from orpo_mlx.data.tokens.rendering.reasoning import PARTS, in_key, letters_of, with_reasoning
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.errors import OrpoError

Render = Callable[..., str]  # messages to text, see ChatTemplate.render
_PROBE = "Rhubarb"
_ASKED: Message = {"role": "user", "content": "Hello"}
_ANSWER: Message = {"role": "assistant", "content": "Hi"}
# A content that is not looked into is written out, with its keys.
_WRITTEN_OUT = re.compile(r"""['"]thinking['"]""")


def key_for_reasoning(render: Render) -> str:
    """The key whose reasoning a template writes, PARTS for parts of the content, or ""."""
    for key in (*REASONING_KEYS, PARTS):
        try:
            text = render([_ASKED, with_reasoning(_ANSWER, _PROBE, key)])
        except (RefusedError, OrpoError):
            continue
        if _PROBE in text and not (key == PARTS and _WRITTEN_OUT.search(text)):
            return key
    return ""


def history_in_key(messages: list[Message], key: str, render: Render) -> list[Message]:
    """Messages of a prompt with their reasoning in a key.

    As they are if that is the same, white space aside; a last answer is continued as it is.
    """
    keyed = [*(_keyed(message, key) for message in messages[:-1]), messages[-1]]
    if keyed == messages:
        return messages
    try:
        is_same = letters_of(render(keyed)) == letters_of(render(messages))
    except RefusedError:
        return messages
    return messages if is_same else keyed


def _keyed(message: Message, key: str) -> Message:
    try:
        return (in_key(message, key) if message["role"] == "assistant" else None) or message
    except RefusedError:
        return message
