"""Answers from a base or an adapter, with the template settings that training used."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.config.train import GenerateConfig
from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.errors import OrpoError
from orpo_mlx.loading import build_encoder, check_prompt_ids, open_base, template_of
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.model.base import why_not_finite
from orpo_mlx.model.mlx_lm_api import make_sampler, stream_generate


class Chat(NamedTuple):
    """A model ready to answer."""

    model: nn.Module
    encoder: Encoder
    notices: list[str]


class Answer(NamedTuple):
    """What has been generated so far: the new piece, the full text, and whether it has ended."""

    piece: str
    text: str
    tokens: int
    ended: bool  # by an end token, not by the limit


def open_chat(config: GenerateConfig) -> Chat:
    """Load base and adapter; raises OrpoError if one cannot be used."""
    base = open_base(config, config.adapter)
    if config.adapter:
        apply_adapter(base.model, config.adapter)
    template = template_of(config, config.adapter)
    return Chat(base.model, build_encoder(base, template, template.thinking != "off"), base.notices)


def generate(chat: Chat, prompt: str, config: GenerateConfig) -> Iterator[Answer]:
    """Stream the answer to a prompt; the last item is the full answer."""
    messages: list[Message] = [{"role": "user", "content": prompt}]
    if config.system:
        messages.insert(0, {"role": "system", "content": config.system})
    yield from stream_answer(
        chat.model,
        chat.encoder,
        chat.encoder.prompt_ids(messages),
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def stream_answer(
    model: nn.Module,
    encoder: Encoder,
    ids: list[int],  # of the prompt
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Answer]:
    """Stream what follows the ids of a prompt; the last item is the full answer.

    Raises OrpoError for ids that the model has no rows for, and for one that gives NaN.
    """
    check_prompt_ids(model, encoder.tokenizer, ids)
    mx.random.seed(seed)
    text = ""
    sampler = make_sampler(temp=temperature)
    model.eval()
    for part in stream_generate(
        model, encoder.tokenizer, ids, max_tokens=max_tokens, sampler=sampler
    ):
        if not text and mx.isnan(part.logprobs).any().item():
            raise OrpoError(
                f"The model gives NaN or infinite numbers for this prompt: {why_not_finite(model)}."
            )
        text += part.text
        ended = part.finish_reason == "stop"
        yield Answer(part.text, text, part.generation_tokens - ended, ended)
