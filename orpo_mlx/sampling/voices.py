"""A base and its adapter as two that answer, in the memory of one: the adapter is switched."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Literal, NamedTuple
from uuid import uuid4

import mlx.nn as nn

from orpo_mlx.config.judging import ChatConfig
from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.judging.answers import BASE, AnswerSource, SampledAnswer
from orpo_mlx.loading import Template, build_encoder, open_base, template_of
from orpo_mlx.model.adapters import WEIGHTS, AdapterSwitch, read_adapter
from orpo_mlx.sampling.thoughts import Parts, split_thought, thought_marks
from orpo_mlx.training.samples.answer import stream_answer

Who = Literal["base", "adapter"]
Show = Callable[[str, bool], None]  # a piece of an answer, and whether it belongs to a thought
PROMPT_END = 16  # tokens of a prompt in which a template may begin a thought


class Voices(NamedTuple):
    """Who answers, both by the template of the adapter, and how."""

    model: nn.Module
    encoder: Encoder
    marks: tuple[str, str]  # of a thought
    switch: AdapterSwitch | None
    sources: dict[Who, AnswerSource]
    notices: list[str]

    def answer(
        self, who: Who, prompt: list[Message], ids: list[int], number: int, seed: int, show: Show
    ) -> SampledAnswer:
        """One's answer to messages, whose ids are given; `show` gets it piece by piece.

        Ctrl-C ends it: it is then cut, as by the limit. Raises OrpoError as `stream_answer` does.
        """
        source = self.sources[who]
        if self.switch:
            self.switch.set(who == "adapter")
        text, tokens, ended = self._stream(source, ids, seed + number, show)
        parts = self._parts(text, ids)
        return SampledAnswer(
            id=uuid4().hex,  # where a chat was stopped, the same draw is another answer
            prompt=prompt,
            source=source,
            number=number,
            seed=seed,
            thought=parts.thought,
            text=parts.text,
            finish="thought" if parts.is_open else "stop" if ended else "length",
            tokens=tokens,
        )

    def _stream(
        self, source: AnswerSource, ids: list[int], seed: int, show: Show
    ) -> tuple[str, int, bool]:
        """The text that was generated, its tokens, and whether an end token ended it."""
        text, tokens, ended, inside = "", 0, False, self._parts("", ids).is_open
        stream = stream_answer(
            self.model,
            self.encoder,
            ids,
            max_tokens=source.max_tokens,
            temperature=source.temperature,
            seed=seed,
        )
        try:
            for answer in stream:
                piece, text, tokens, ended = answer
                was_inside, inside = inside, self._parts(text, ids).is_open
                show(piece, was_inside or inside)
        except KeyboardInterrupt:
            ended = False
        return text, tokens, ended

    def _parts(self, text: str, ids: list[int]) -> Parts:
        end = self.encoder.tokenizer.decode(ids[-PROMPT_END:])
        return split_thought(text, self.marks, str(end))


def open_voices(config: ChatConfig) -> Voices:
    """Load base and adapter; raises OrpoError if one cannot be used."""
    base = open_base(config, config.adapter)
    template = template_of(config, config.adapter)
    encoder = build_encoder(base, template, template.thinking != "off")
    source = _source(config, template, encoder)
    sources: dict[Who, AnswerSource] = {"base": source}
    switch = None
    if config.adapter:
        switch = AdapterSwitch(base.model, read_adapter(config.adapter))
        named = {"name": str(config.adapter), "adapter": str(config.adapter)}
        weights = (config.adapter / WEIGHTS).read_bytes()
        named["adapter_sum"] = blake2b(weights, digest_size=8).hexdigest()
        sources["adapter"] = source.model_copy(update=named)
    return Voices(base.model, encoder, thought_marks(base.tokenizer), switch, sources, base.notices)


def _source(config: ChatConfig, template: Template, encoder: Encoder) -> AnswerSource:
    """The base as a source of answers."""
    text = config.chat_template.read_bytes() if config.chat_template else None
    return AnswerSource(
        name=BASE,
        model=config.model,
        revision=config.revision,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        thinking=encoder.thinking,
        template_date=template.date.isoformat(),
        template_args=dict(template.arguments),
        chat_template=blake2b(text, digest_size=8).hexdigest() if text is not None else None,
        eos_token=config.eos_token,
    )
