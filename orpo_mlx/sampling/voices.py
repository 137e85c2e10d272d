"""A base and its adapter as two that answer, in the memory of one: the adapter is switched."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

import mlx.nn as nn

from orpo_mlx.config.judging import ChatConfig
from orpo_mlx.data.pairs.messages import Message
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.judging.answers import BASE_NAME, AnswerSource, SampledAnswer
from orpo_mlx.loading import build_encoder, open_base, with_tokenizer_of
from orpo_mlx.model.adapters import AdapterSwitch, read_adapter
from orpo_mlx.model.base import Base
from orpo_mlx.sampling.sources import answerer_of
from orpo_mlx.sampling.texts import opens_thought, split_answer
from orpo_mlx.training.samples.answer import stream_answer

Who = Literal["base", "adapter"]
Show = Callable[[str, bool], None]  # a piece of an answer, and whether it belongs to a thought


class Voice(NamedTuple):
    """One of both: how its text is made, and what its answers keep of it."""

    encoder: Encoder
    source: AnswerSource


class Voices(NamedTuple):
    """One loaded model that answers as its base, or with its adapter where there is one."""

    model: nn.Module
    switch: AdapterSwitch | None
    voices: dict[Who, Voice]
    notices: list[str]

    def answer(
        self, who: Who, prompt: list[Message], ids: list[int], number: int, seed: int, show: Show
    ) -> SampledAnswer:
        """One's answer to messages, whose ids are given; `show` gets it piece by piece.

        Ctrl-C ends it: it is then cut, as by the limit. Raises OrpoError as `stream_answer` does.
        """
        voice = self.voices[who]
        if self.switch:
            self.switch.set(who == "adapter")
        opened = opens_thought(voice.encoder.tokenizer, ids)
        text, tokens, ended = self._stream(voice, ids, seed + number, opened, show)
        parts = split_answer(text, opened=opened, ended=ended)
        return SampledAnswer(
            id=uuid4().hex,  # not that of `sample`, which draws by other keys and is never stopped
            prompt=prompt,
            source=voice.source,
            number=number,
            seed=seed,
            thought=parts.thought,
            text=parts.text,
            finish=parts.finish,
            tokens=tokens,
        )

    def _stream(
        self, voice: Voice, ids: list[int], seed: int, opened: bool, show: Show
    ) -> tuple[str, int, bool]:
        """The text that was generated, its tokens, and whether an end token ended it."""
        text, tokens, ended, inside = "", 0, False, opened
        stream = stream_answer(
            self.model,
            voice.encoder,
            ids,
            max_tokens=voice.source.max_tokens,
            temperature=voice.source.temperature,
            seed=seed,
        )
        try:
            for answer in stream:
                piece, text, tokens, ended = answer
                now = split_answer(text, opened=opened, ended=True).finish == "thought"
                show(piece, inside or now)
                inside = now
        except KeyboardInterrupt:
            ended = False
        return text, tokens, ended


def open_voices(config: ChatConfig) -> Voices:
    """Load base and adapter; raises OrpoError if one cannot be used."""
    base = open_base(config)
    voices: dict[Who, Voice] = {"base": _voice(config, base, None, BASE_NAME)}
    switch = None
    if folder := config.adapter:
        switch = AdapterSwitch(base.model, read_adapter(folder))
        name = folder.resolve().name
        name = str(folder) if name == BASE_NAME else name
        voices["adapter"] = _voice(config, with_tokenizer_of(base, config, folder), folder, name)
    return Voices(base.model, switch, voices, base.notices)


def _voice(config: ChatConfig, base: Base, folder: Path | None, name: str) -> Voice:
    """The base, or its adapter of that folder, by its own tokenizer."""
    source, _, template = answerer_of(config, folder, name, {}, like=config.adapter)
    return Voice(build_encoder(base, template, source.thinking), source)
