"""One pair to token ids: prompt and responses apart, each with its end token. Cuts nothing."""

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.pairs.turns import is_rendered
from orpo_mlx.data.tokens.rendering.message_keys import extra_keys, unread_notes
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.data.tokens.rendering.round_trip import lost_parts
from orpo_mlx.data.tokens.rendering.template import ChatTemplate, Rendered
from orpo_mlx.data.tokens.unwritten import TOKENIZER, Unwritten
from orpo_mlx.errors import OrpoError

ONCE_MORE = "prompt with a template's markers, rendered once more"


def common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(first), len(second))
    if length and first[0] != second[0]:
        return 0
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def shared_inputs(prompt: int, chosen: np.ndarray, rejected: np.ndarray) -> int:
    """How many inputs both rows of a pair have alike; a response's last token is not an input."""
    longest = max(len(chosen), len(rejected))
    return prompt + min(common_prefix(chosen, rejected), longest - 1)


class EncodedPair(NamedTuple):
    """Token ids of one pair; a response holds its end-of-turn token unless it was cut."""

    prompt: np.ndarray  # (P,) int32
    chosen: np.ndarray  # (R_c,) int32
    rejected: np.ndarray  # (R_r,) int32; of an SFT row (0,)
    location: str
    weight: float = 1.0  # how often its loss counts

    @property
    def is_sft(self) -> bool:
        """Whether there is one response alone, trained by its likelihood."""
        return len(self.rejected) == 0

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer response."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Encoder:
    """Turns pairs into ids as generation will see them, with one tokenizer and its settings.

    `tokenizer` is Hugging Face's (or mlx-lm's wrapper of it), `end_ids` the ids that stop
    generation, `arguments` go to the template as they are. `date` is what its clock shows.
    """

    tokenizer: Any
    end_ids: frozenset[int]
    has_template: bool
    thinking: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    date: dt.date = dt.date(2000, 1, 1)
    max_seq_length: int = 2048
    max_prompt_length: int | None = None
    template_name: str = ""  # for messages; else the tokenizer's
    thinking_argument: str = "enable_thinking"  # what the template calls it
    fingerprint: str = ""  # of the tokenizer's files

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template."""
        return ChatTemplate(
            self.tokenizer, self.thinking, self.arguments, self.date, self.thinking_argument
        )

    def template_text(self) -> str:
        """The template as it is stored, all of them if it has several; "" for none."""
        stored = self.tokenizer.chat_template if self.has_template else ""
        return stored if isinstance(stored, str) else json.dumps(stored, sort_keys=True)

    def render_pair(self, pair: PreferencePair, notes: Counter[str]) -> Rendered:
        """The texts of a pair; raises RefusedError if they are not what the row holds."""
        prompts, answers = ([m["content"] for m in p] for p in (pair.messages, pair.responses))
        texts = [*prompts, *answers]
        marks = self.control_marks(texts)
        for mark in () if pair.raw else marks:
            notes[f"text that holds {mark}, read as a control token"] += 1
        for text in answers if marks else ():
            if any(mark in text.rstrip().removesuffix(mark) for mark in self._end_tokens):
                notes["response that holds an end token, and ends there"] += 1
        if pair.raw:
            notes["pair that came with its template's markers, used as it is"] += 1
            prompt, chosen, rejected = texts
            return Rendered(prompt, chosen, rejected)
        if self.has_template:
            if marks and any(map(self._is_rendered, prompts)):
                notes[ONCE_MORE] += 1
            return self.template.render_pair(pair, notes)
        chosen, rejected = (str(r["content"]) for r in (pair.chosen, pair.rejected))
        if pair.tools or lost_parts(pair.chosen, chosen) or lost_parts(pair.rejected, rejected):
            raise RefusedError(f"reasoning and tools need a chat template, {_NO_TEMPLATE}")
        for message in (*pair.messages, *pair.responses):
            notes.update(unread_notes([message], extra_keys(message)))
        return Rendered(_plain_text(pair.messages), chosen, rejected)

    def _is_rendered(self, text: str) -> bool:
        """Whether a text is a template's: a turn that begins and ends, and the next that begins."""
        return is_rendered(text) and len(self._control.findall(text)) >= 3

    def control_marks(self, texts: Sequence[str]) -> list[str]:
        """The control tokens that texts hold, written out, each once."""
        return sorted({m[0] for text in texts for m in self._control.finditer(text)})

    def encode(self, pair: PreferencePair, rendered: Rendered) -> tuple[list[int], ...]:
        """Ids of prompt, chosen and rejected, uncut; raises OrpoError if an answer has no end."""
        return self.encode_all([pair], [rendered], Counter())[0]

    def encode_all(
        self, pairs: Sequence[PreferencePair], rendered: Sequence[Rendered], notes: Counter[str]
    ) -> list[tuple[list[int], ...]]:
        """`encode` of many pairs at once, which is faster."""
        encoded: list[tuple[list[int], ...]] = []
        for pair, (prompt, *tails) in zip(pairs, self._parts(rendered), strict=True):
            chosen, rejected = (
                self._end_response(tail, response, pair)
                for tail, response in zip(tails, (pair.chosen, pair.rejected), strict=True)
            )
            start = self._missing_start(prompt, notes) if pair.raw else self._start
            encoded.append((start + prompt, chosen, rejected))
        return encoded

    def up_to_end(self, response: str) -> str:
        """The text of a response before its first end token."""
        ends = (response.find(token) for token in self._end_tokens if token in response)
        return response[: min(ends, default=None)]

    def count_differing(self, rendered: Sequence[Rendered]) -> int:
        """Pairs whose prompt and response, as one text, would be other tokens than the encoded."""
        whole = self._ids_of([row.prompt + tail for row in rendered for tail in row[1:]])
        encoded = [prompt + tail for prompt, *tails in self._parts(rendered) for tail in tails]
        rows = enumerate(zip(whole, encoded, strict=True))
        return len({number // 2 for number, (one, other) in rows if one != other})

    def _parts(self, rendered: Sequence[Rendered]) -> list[list[list[int]]]:
        """Ids of prompts, and of the responses as they follow them."""
        texts = [text for row in rendered for text in row]
        if self._marks_start:
            texts += [row.prompt + tail for row in rendered for tail in row[1:]]
        ids = self._ids_of(texts)
        count = 3 * len(rendered)
        parts = [ids[first : first + 3] for first in range(0, count, 3)]
        if not self._marks_start:
            return parts
        whole = iter(ids[count:])
        return [
            [prompt, *(_after(prompt, next(whole), t) for t in tails)] for prompt, *tails in parts
        ]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that already holds its special tokens."""
        return self._ids_of([text])[0]

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of many texts."""
        if self._fast is not None:
            try:
                encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:  # no token, not even an unknown one, for some of it
                if len(texts) > 1:
                    return [self.ids(text) for text in texts]
                raise OrpoError(f"The tokenizer cannot encode {texts[0]!r}: {error}.") from None
            return [encoding.ids for encoding in encodings]
        with TOKENIZER:
            return [list(self.tokenizer.encode(t, add_special_tokens=False)) for t in texts]

    @cached_property
    def _fast(self) -> Any:
        """The tokenizer in Rust, which several threads may use at once, if there is one.

        Set up here alone: it refuses that, as each call of transformers may ask, while another
        thread uses it.
        """
        if not self.tokenizer.is_fast:
            return None
        backend = self.tokenizer.backend_tokenizer
        with TOKENIZER:
            if backend.truncation or backend.padding:
                backend.no_truncation()
                backend.no_padding()
        return backend

    def prompt_ids(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """Ids of what generation is given; without a template the text itself, after any BOS."""
        try:
            if not self.has_template:
                return self._start + self.ids(_plain_text(messages))
            accepted = self.template.prepare_messages(messages, Counter())
            return self.ids(self.template.render_prompt(accepted, tools))
        except RefusedError as error:
            raise OrpoError(f"The prompt cannot be rendered: {error}.") from None

    def prompt_ids_of(self, pair: PreferencePair) -> list[int]:
        """`prompt_ids` of a pair; a rendered prompt is given as training reads it."""
        if not pair.raw:
            return self.prompt_ids(pair.messages, pair.tools)
        prompt = self.ids(pair.messages[0]["content"])
        return self._missing_start(prompt, Counter()) + prompt

    @property
    def name(self) -> str:
        """What messages call the template."""
        return (
            self.template_name
            or f"the chat template of {self.tokenizer.name_or_path or 'this base'}"
        )

    @cached_property
    def _start(self) -> list[int]:
        """The BOS of a base without a template, if its tokenizer sets one."""
        if self.has_template:
            return []
        whole = self.tokenizer.encode("") if self._fast is None else self._fast.encode("").ids
        start = list(whole)[:1]
        return start if start == [self.tokenizer.bos_token_id] else []

    def _missing_start(self, prompt: list[int], notes: Counter[str]) -> list[int]:
        """The BOS with which generation begins, if a rendered prompt has none.

        Another control token is not put there, only counted: it may be part of a turn.
        """
        opening = self._opening
        if not opening or self._begins_with(opening[0], prompt):
            return []
        token = self.tokenizer.convert_ids_to_tokens(opening[0])
        if opening == [self.tokenizer.bos_token_id]:
            notes[f"rendered prompt without the start token {token}, which was added"] += 1
            return opening
        if self._control.fullmatch(token) and opening[0] not in prompt:
            notes[f"rendered prompt without {token}, with which the template's prompts begin"] += 1
        return []

    def _begins_with(self, token: int, prompt: list[int]) -> bool:
        """Whether nothing but white space precedes a token."""
        start = _first(prompt, token)
        return start < len(prompt) and not str(self.tokenizer.decode(prompt[:start])).strip()

    @cached_property
    def _opening(self) -> list[int]:
        """The first token of the prompts that generation is given; none if it follows the text."""
        if not self.has_template:
            return self._start
        try:
            return self.prompt_ids([{"role": "user", "content": "Hello"}])[:1]
        except OrpoError:
            return []

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches the special tokens, which are control tokens inside a text too."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        return re.compile(
            "|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)"
        )

    @cached_property
    def _end_tokens(self) -> list[str]:
        return [str(t) for t in self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids))]

    @cached_property
    def unwritten(self) -> Unwritten:
        """Finds text that the tokenizer has no tokens for."""
        return Unwritten(self.tokenizer, self._fast, self._control)

    @cached_property
    def _marks_start(self) -> bool:
        """Whether a text begins with other tokens than it has inside a longer one (Llama 2)."""
        try:
            return self.ids("\nHello") != self.ids("\n") + self.ids("Hello")
        except OrpoError:  # it has no tokens for these
            return False

    def _end_response(self, ids: list[int], response: Message, pair: PreferencePair) -> list[int]:
        """A response up to and with its first end token."""
        end = min((_first(ids, token) for token in self.end_ids), default=len(ids))
        if end < len(ids):
            return ids[: end + 1]
        if not self.has_template:
            token = self.tokenizer.eos_token_id
            return [*ids, min(self.end_ids) if token is None else token]
        if pair.raw:
            return [*ids, self._answers_end]
        after = self.ids(self.template.text_after(response))
        if after and after[0] in self.end_ids:
            return [*ids, after[0]]
        raise OrpoError(f"{pair.location}: {self._no_end_token(ids)}")

    @cached_property
    def _answers_end(self) -> int:
        """The end token that the template writes after an answer."""
        some = PreferencePair("Hello", ANSWER, OTHER_ANSWER, "an answer")
        return self.encode(some, self.template.render_pair(some, Counter()))[1][-1]

    def _no_end_token(self, ids: list[int]) -> str:
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        seen = [self.tokenizer.convert_ids_to_tokens(i) for i in ids if i in special]
        proposal = (
            f'It ends an answer with "{seen[-1]}": name it with --eos-token "{seen[-1]}".'
            if seen
            else "Name the token that ends a turn with --eos-token TOKEN."
        )
        return (
            f"{self.name} writes no end token after an answer "
            f"(end tokens of this model: {', '.join(self._end_tokens)}). {proposal}"
        )


ANSWER, OTHER_ANSWER = ({"role": "assistant", "content": text} for text in ("Hi", "Yes"))
_NO_TEMPLATE = "and this base has none (give one with --chat-template FILE)"


def _first(ids: list[int], token: int) -> int:
    """Where a token is first; the length if it is not there."""
    try:
        return ids.index(token)
    except ValueError:
        return len(ids)


def _after(prompt: list[int], whole: list[int], tail: list[int]) -> list[int]:
    """What follows the prompt's ids in those of the whole text, or the tail's own."""
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else tail


def _plain_text(messages: Sequence[Message]) -> str:
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise RefusedError(f"a conversation needs a chat template, {_NO_TEMPLATE}")
    return str(messages[0]["content"])
