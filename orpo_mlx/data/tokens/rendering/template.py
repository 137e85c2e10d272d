"""Messages to text by a chat template: the prompt that generation sees, and what an answer adds.

Finds what a template loses of a message. Knows nothing of token ids, limits or files.
"""

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from jinja2 import Template, TemplateSyntaxError

from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.tokens.rendering.answer_tail import OPENED, USER, AnswerTail
from orpo_mlx.data.tokens.rendering.bounds import bound_transformers
from orpo_mlx.data.tokens.rendering.budget import begin_text
from orpo_mlx.data.tokens.rendering.message_keys import extra_keys, unread_notes, without_keys
from orpo_mlx.data.tokens.rendering.reasoning import lacks_opening, may_reason
from orpo_mlx.data.tokens.rendering.reasoning_key import history_in_key, key_for_reasoning
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.data.tokens.rendering.round_trip import holds_words, lost_in_prompt, lost_parts
from orpo_mlx.errors import OrpoError

REASONING_UNOPENED = "response whose text before </think> is read as reasoning, without <think>"
FOLDED = "system message put before the next user message (the template refuses the role)"
_ANSWER: Message = {"role": "assistant", "content": "Hi"}
_TOOL: Message = {"role": "tool", "content": "1"}
_PLAIN_KEYS = {"role", "content"}
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Rendered(NamedTuple):
    """The texts of a pair; each response is what the template adds to the prompt.

    The one response of an SFT row is in both.
    """

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with its settings; `date` is what its clock shows."""

    tokenizer: Any
    thinking: bool
    arguments: Mapping[str, Any]
    date: dt.date
    thinking_argument: str = "enable_thinking"  # what the template calls it

    def render_pair(self, pair: PreferencePair, notes: Counter[str]) -> Rendered:
        """The texts of a pair; raises RefusedError if they are not what the row holds.

        A row that the template cannot render takes the other thinking switch, if that helps.
        """
        try:
            rendered, own_notes = self._render_texts(pair)
        except RefusedError as error:
            try:
                rendered, own_notes = self._other._render_texts(pair)
            except RefusedError:
                raise error from None
            on, off = ("on", "off") if self._other.thinking else ("off", "on")
            notes[f"pair that can only be rendered with --thinking {on}, not {off}"] += 1
        notes.update(own_notes)
        return rendered

    def _render_texts(self, pair: PreferencePair) -> tuple[Rendered, Counter[str]]:
        """The texts of a pair, and notes on them."""
        notes: Counter[str] = Counter()
        messages = self.prepare_messages(pair.messages, notes)
        answers = pair.responses
        rendered = self._render_parts(messages, answers, pair.tools)
        for answer, tail in zip(answers, rendered[1:], strict=False):
            if lost := lost_parts(answer, tail):
                raise RefusedError(_loss(answer, lost))
        for part, role in lost_in_prompt(messages, rendered.prompt):
            notes[f"{part} of a message in a prompt ({role}), dropped by the template"] += 1
        if pair.tools and self._drops(pair.tools, messages, rendered.prompt):
            notes["list of tools, dropped by the template"] += 1
        unopened = sum(lacks_opening(answer["content"]) for answer in answers)
        if unopened and self._reasoning_key and not OPENED.search(rendered.prompt):
            notes[REASONING_UNOPENED] += unopened
        everything = [*messages, *answers]
        if keys := {key for m in everything if len(m) > 2 for key in extra_keys(m)}:
            unread = self._unread(keys, messages, answers, pair.tools, rendered)
            notes.update(unread_notes(everything, unread))
        return rendered, notes

    def _render_parts(
        self, messages: list[Message], answers: Sequence[Message], tools: list[Any] | None
    ) -> Rendered:
        """The texts of a prompt and its answers."""
        messages = self._with_reasoning_in_key(messages)
        prompt = self._prompt(messages, tools)
        tail = AnswerTail(self.render, lambda: self._reasoning_key, messages, tools, prompt)
        texts = [tail.of(answer) for answer in answers]
        return Rendered(prompt, texts[0], texts[-1])

    def _drops(self, tools: list[Any], messages: Sequence[Message], prompt: str) -> bool:
        """Whether a prompt does not show the tools that it was given."""
        names = [tool.get("function", tool).get("name") for tool in tools]
        return not holds_words(prompt, names) or self.render_prompt(messages) == prompt

    def _unread(
        self,
        keys: set[str],
        messages: list[Message],
        answers: Sequence[Message],
        tools: list[Any] | None,
        rendered: Rendered,
    ) -> set[str]:
        """Those of these keys of messages without which the texts would be the same."""

        def is_same_without(some: set[str]) -> bool:
            bare, *own = (
                [without_keys(message, some) for message in part] for part in (messages, answers)
            )
            try:
                return self._render_parts(bare, own[0], tools) == rendered
            except RefusedError:
                return False

        return keys if is_same_without(keys) else {key for key in keys if is_same_without({key})}

    def render(
        self, messages: Sequence[Message], tools: list[Any] | None = None, **how: Any
    ) -> str:
        """The text of messages; `how` is add_generation_prompt or continue_final_message."""
        arguments = {self.thinking_argument: self.thinking, **self.arguments, **how}
        if tools:
            arguments["tools"] = tools
        arguments |= self._without_clock(tools)
        apply = self.tokenizer.apply_chat_template
        bound_transformers()
        begin_text()
        try:
            if (text := self._plainly(messages, arguments)) is not None:
                return text
            try:
                return str(apply(list(messages), tokenize=False, **arguments))
            except TypeError:  # DeepSeek's adds the arguments of a tool call to a text
                written = [_with_arguments_as_text(m) for m in messages]
                return str(apply(written, tokenize=False, **arguments))
        except TemplateSyntaxError as error:
            raise OrpoError(f"The chat template is broken: line {error.lineno}: {error}") from None
        except OrpoError:
            raise
        except (
            Exception
        ) as error:  # a template is foreign code: whatever it raises is about this row
            first_line = str(error).partition("\n")[0]
            raise RefusedError(f"the template refuses it: {first_line}") from None

    def _plainly(self, messages: Sequence[Message], arguments: dict[str, Any]) -> str | None:
        """The text by transformers' own compiled template, without its copies of messages that
        hold nothing but texts, which take half the time; None for any other message or argument."""
        plain = all(
            message.keys() == _PLAIN_KEYS and type(message["content"]) is str
            for message in messages
        )
        if not plain or "tools" in arguments or "continue_final_message" in arguments:
            return None
        text = arguments.get("chat_template", self.tokenizer.chat_template)
        if self._given is None or not isinstance(text, str):
            return None
        template, names = _compile(text)
        # One flat dict: `Template.render` would copy jinja's chained globals name by name.
        values = {**names, **self._given, "messages": messages, **arguments}
        pieces = template.root_render_func(template.new_context(values, shared=True))
        return str(template.environment.concat(pieces))

    def render_prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> str:
        """What generation is given: up to where the answer begins."""
        return self._prompt(self._with_reasoning_in_key(list(messages)), tools)

    def _prompt(self, messages: Sequence[Message], tools: list[Any] | None) -> str:
        if messages[-1]["role"] == "assistant":
            return self.render(messages, tools, continue_final_message=True)
        return self.render(messages, tools, add_generation_prompt=True)

    def prepare_messages(self, messages: Sequence[Message], notes: Counter[str]) -> list[Message]:
        """Without empty system messages; the others before the user's if the role is refused."""
        messages = [m for m in messages if m["role"] != "system" or m["content"].strip()]
        if not messages:
            raise RefusedError("the prompt holds nothing but an empty system message")
        if not self._refuses_system or all(m["role"] != "system" for m in messages):
            return messages
        notes[FOLDED] += 1
        kept: list[Message] = []
        held: list[str] = []
        for message in messages:
            if message["role"] == "system":
                held.append(message["content"])
            elif held and message["role"] == "user":
                kept.append({**message, "content": "\n\n".join([*held, message["content"]])})
                held = []
            else:
                kept.append(message)
        if held:
            raise RefusedError("the template refuses a system message, and no user's follows it")
        return kept

    def text_after(self, response: Message) -> str:
        """What the template writes between an answer of this kind and the turn that follows."""
        calls = response.get("tool_calls")
        conversation, turn = [USER, _ANSWER], USER
        if calls:
            conversation = [USER, {**_ANSWER, "tool_calls": calls}]
            turn = {**_TOOL, "name": calls[0].get("function", calls[0])["name"]}
        try:
            whole = self.render(conversation)
            longer = self.render([*conversation, turn])
        except RefusedError:
            return ""
        return longer[len(whole) :] if longer.startswith(whole) else ""

    @cached_property
    def _reasoning_key(self) -> str:
        """The key of a message in which the template reads reasoning; "" if it reads none."""
        return key_for_reasoning((self if self.thinking else self._other).render)

    def _with_reasoning_in_key(self, messages: list[Message]) -> list[Message]:
        """Messages of a prompt, their reasoning where the template reads it."""
        if not any(map(may_reason, messages[:-1])) or not self._reasoning_key:
            return messages
        return history_in_key(messages, self._reasoning_key, self.render)

    @cached_property
    def _given(self) -> dict[str, Any] | None:
        """What transformers gives every template; None if the tokenizer renders by own code."""
        from transformers import PreTrainedTokenizerBase

        usual = PreTrainedTokenizerBase.apply_chat_template
        if getattr(type(self.tokenizer), "apply_chat_template", None) is not usual:
            return None
        given = {"add_generation_prompt": False, "tools": None, "documents": None}
        return given | self.tokenizer.special_tokens_map

    @cached_property
    def _other(self) -> "ChatTemplate":
        return replace(self, thinking=not self.thinking)

    @cached_property
    def _refuses_system(self) -> bool:
        try:
            self.render([{"role": "system", "content": "Hi"}, USER], add_generation_prompt=True)
        except RefusedError:
            return True
        return False

    def _without_clock(self, tools: list[Any] | None) -> dict[str, str]:
        """The template with its date written in: transformers lets nobody set the clock."""
        if not isinstance(self.tokenizer.chat_template, str | dict):
            return {}
        text = self.tokenizer.get_chat_template(tools=tools)
        return {"chat_template": _write_date(text, self.date)} if "strftime_now" in text else {}


def _loss(answer: Message, lost: Sequence[str]) -> str:
    """Why an answer that loses something is refused."""
    if list(lost) == ["content"] and "</think>" in answer["content"]:
        return "the template reads the </think> in the text of a response as the end of reasoning"
    return f"the template drops the {' and the '.join(lost)} of a response"


def _with_arguments_as_text(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_write_arguments(call) for call in message["tool_calls"]]}


def _write_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _write_arguments(call["function"])}
    return {**call, "arguments": json.dumps(call.get("arguments"), ensure_ascii=False)}


@lru_cache(maxsize=4)
def _compile(template: str) -> tuple[Template, dict[str, Any]]:
    """The template, and the names that every template knows."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(template)
    assert isinstance(compiled, Template)
    # jinja makes a set of its names for each text, which a chain of dicts takes long to give.
    names = compiled.globals = dict(compiled.globals)
    _remember_safe_attributes(compiled.environment)
    return compiled, names


def _remember_safe_attributes(environment: Any) -> None:
    """Ask the sandbox once for each type and attribute: it asks abstract classes, which is slow,
    and its answer depends on nothing else."""
    if "is_safe_attribute" in vars(environment):
        return
    judge = environment.is_safe_attribute
    known: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(of: Any, attribute: str, value: Any) -> bool:
        key = type(of), attribute
        if key not in known:
            known[key] = judge(of, attribute, value)
        return known[key]

    environment.is_safe_attribute = is_safe_attribute


@lru_cache
def _write_date(template: str, date: dt.date) -> str:
    return _CLOCK.sub(lambda call: json.dumps(date.strftime(call[2])), template)
