"""Answers from a base or an adapter, with the template settings that training used."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.nn as nn

from orpo_mlx.config.train import GenerateConfig
from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.loading import build_encoder, open_base, template_of
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.training.samples.answer import Answer, stream_answer


class Chat(NamedTuple):
    """A model ready to answer."""

    model: nn.Module
    encoder: Encoder
    notices: list[str]


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


def typed_warnings(encoder: Encoder, name: str, text: str) -> Iterator[str]:
    """What of a typed text, which messages call `name`, the tokenizer reads as something else."""
    for mark in encoder.control_marks([text]):
        yield f"{name} holds {mark}, read as a control token."
    (loss,) = encoder.unwritten.of([text])
    if loss.lost:
        yield f"{name}: the tokenizer has no tokens for {loss}."
