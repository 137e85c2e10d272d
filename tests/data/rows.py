"""Rows and encoders for the tests of templates and encoding."""

from typing import Any

import numpy as np
import pytest

from orpo_mlx.data.batching.order import shared_beginnings, shared_by_all
from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.tokens.encode import encode_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair, Encoder
from orpo_mlx.errors import OrpoError
from tests import tiny


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> Message:
    return {"role": "assistant", "content": text, **keys}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def pair(
    prompt: str | list[Message] = "hello",
    chosen: str | Message = "please check",
    rejected: str | Message = "later",
    **keys: Any,
) -> PreferencePair:
    answers = (a if isinstance(a, dict) else assistant(a) for a in (chosen, rejected))
    return PreferencePair(prompt, *answers, keys.pop("location", "f:1"), **keys)


def build(
    template: str | None = tiny.CHATML, ends: tuple[str, ...] = ("<|im_end|>",), **settings: Any
) -> Encoder:
    tokenizer = tiny.build_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|tool|>"]})
    ids = frozenset(tokenizer.convert_tokens_to_ids(list(ends)))
    return Encoder(tokenizer, ids, template is not None, **settings)


def lines_of(report: ReadReport) -> list[str]:
    """What happened to pairs, a line each."""
    return [f"{count} x {what}" for count, what in report.counts()]


def texts(encoder: Encoder, row: PreferencePair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as the model reads them; asserts that nothing is reported."""
    encoded, report = encode_pairs([row], encoder)
    assert lines_of(report) == []
    return decoded(encoder, encoded[0])


def decoded(encoder: Encoder, row: EncodedPair) -> tuple[str, str, str]:
    prompt, chosen, rejected = (encoder.tokenizer.decode(ids) for ids in row[:3])
    return prompt, chosen, rejected


def notes_of(encoder: Encoder, *rows: PreferencePair) -> list[str]:
    return lines_of(encode_pairs(rows, encoder)[1])


def refusal(encoder: Encoder, *rows: PreferencePair) -> str:
    with pytest.raises(OrpoError) as error:
        encode_pairs(rows, encoder)
    return str(error.value)


def groups_of(
    prompts: list[np.ndarray],
    lengths: np.ndarray,
    micro_batch_size: int = 2,
    smallest: int | None = None,
) -> np.ndarray:
    """The groups of pairs with these prompts."""
    pairs = [EncodedPair(prompt, prompt[:1], prompt[:1], "") for prompt in prompts]
    common = shared_by_all(pairs)
    return shared_beginnings(
        pairs, lengths, common=common, micro_batch_size=micro_batch_size, smallest=smallest
    )
