"""What an answer adds to a prompt's text, its reasoning where the template reads it."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS
from orpo_mlx.data.tokens.rendering.reasoning import (
    CANNOT_WRITE,
    NEVER_CLOSED,
    OPEN,
    REASONING,
    in_key,
    letters_of,
    may_reason,
    split_content,
    with_reasoning,
)
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.data.tokens.rendering.round_trip import lost_parts

USER: Message = {"role": "user", "content": "Hello"}
OPENED = re.compile(r"<think>\s*\Z")
_REWRITES = (
    "the prompt that generation sees is not the beginning of prompt + response: the template "
    "rewrites the conversation (give another with --chat-template FILE)"
)
_NEEDS_REASONING = (
    "generation opens <think> at the end of the prompt, and this response has no reasoning to "
    "follow it: for this template every response needs its reasoning (in reasoning_content, or as "
    "<think>...</think> before its text); else give a template that opens none with "
    "--chat-template FILE"
)


class AnswerTail(NamedTuple):
    """The tails of answers to one prompt by one template.

    `reasoning_key` is the key in which the template reads reasoning; "": it reads none.
    """

    render: Callable[..., str]  # messages and tools to text, see ChatTemplate.render
    reasoning_key: Callable[[], str]
    messages: list[Message]  # of the prompt
    tools: list[Any] | None
    prompt: str

    def of(self, response: Message) -> str:
        """The tail of an answer; raises RefusedError if the template has none for it.

        What the prompt begins of an answer belongs to it.
        """
        *before, last = self.messages
        if last["role"] != "assistant":
            return self.of_whole(response)
        content = last["content"] + response["content"]
        return self._replace(messages=before).of_whole({**last, **response, "content": content})

    def of_whole(self, response: Message) -> str:
        """`of` where the prompt begins no answer."""
        if not may_reason(response) or not self.reasoning_key():
            return self._added(response)
        kinds = [kind for kind, _ in split_content(response["content"])]
        if kinds == [OPEN]:
            return self._of_open(response)
        keyed = in_key(response, self.reasoning_key())
        if keyed is not None:
            return self._of_keyed(response, keyed)
        tail = self._added(response)
        if REASONING in kinds or not lost_parts(response, tail):
            return tail
        # The text is about the mark; some templates look for it only where no reasoning is given.
        return self._added(with_reasoning(response, "", self.reasoning_key()))

    def _of_keyed(self, response: Message, keyed: Message) -> str:
        """The tail of an answer whose reasoning is in the key; as it was if that is the same."""
        tail = self._added(keyed)
        with suppress(RefusedError):
            as_it_was = self._added(response)
            if letters_of(as_it_was) == letters_of(tail):
                return as_it_was
        return tail

    def _of_open(self, response: Message) -> str:
        """The tail of an answer that ends inside its reasoning, where the template can write it."""
        thought = split_content(response["content"])[0][1].strip()
        tail, empty = self._added(response), {**response, "content": ""}
        whole = letters_of(self._added(with_reasoning(empty, thought, self.reasoning_key())))
        start, middle, _ = whole.partition(letters_of(thought))
        if not middle or not letters_of(tail).startswith(start + middle):
            raise RefusedError(f"{CANNOT_WRITE} {NEVER_CLOSED}")
        return tail

    def _added(self, response: Message) -> str:
        """What the complete conversation adds to the prompt's text."""
        whole = self.render([*self.messages, response], self.tools)
        if whole.startswith(self.prompt):
            return whole[len(self.prompt) :]
        if self.messages and self.messages[-1]["role"] == "user":
            # Mistral's writes a last user turn otherwise than an earlier one (the system message
            # is in it): the answer's own text then follows any other user turn.
            start = self.render([USER], self.tools, add_generation_prompt=True)
            whole = self.render([USER, response], self.tools)
            opening = start.rpartition(USER["content"])[2]
            if whole.startswith(start) and self.prompt.endswith(opening):
                return whole[len(start) :]
        if (opened := OPENED.search(self.prompt)) and not self.reasoning_key():
            return self._added_after_opening(response, self.prompt[: opened.start()])
        raise RefusedError(_REWRITES)

    def _added_after_opening(self, response: Message, prompt: str) -> str:
        """What follows `<think>` where generation begins with it and the template drops reasoning.

        DeepSeek-R1's way: the reasoning, `</think>`, and what the template adds for the answer.
        """
        key = REASONING_KEYS[0]
        keyed = in_key(response, key)
        if keyed is None and not response.get(key):
            raise RefusedError(_NEEDS_REASONING)
        response = keyed or response
        answer = {k: v for k, v in response.items() if k != key}
        whole = self.render([*self.messages, answer], self.tools)
        if not whole.startswith(prompt):
            raise RefusedError(_REWRITES)
        return f"{response.get(key, '').strip()}\n</think>\n\n{whole[len(prompt) :]}"
