"""The one way to generate an answer: of a base, of an adapter, or in the midst of a training."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.errors import OrpoError
from orpo_mlx.loading import check_prompt_ids
from orpo_mlx.model.base import why_not_finite
from orpo_mlx.model.layer_hooks import evaluating
from orpo_mlx.model.mlx_lm_api import make_sampler, stream_generate, with_end_tokens


class Answer(NamedTuple):
    """What has been generated so far: the new piece, the full text, and whether it has ended."""

    piece: str
    text: str
    tokens: int
    ended: bool  # by an end token, not by the limit


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
    if temperature:  # else nothing is drawn, and a run's random state stays as it is
        mx.random.seed(seed)
    text = ""
    sampler = make_sampler(temp=temperature)
    tokenizer = with_end_tokens(encoder.tokenizer, encoder.end_ids)
    with evaluating(model):
        for part in stream_generate(model, tokenizer, ids, max_tokens=max_tokens, sampler=sampler):
            if not text and mx.isnan(part.logprobs).any().item():
                raise not_finite_error(model, "this prompt")
            text += part.text
            ended = part.finish_reason == "stop"
            yield Answer(part.text, text, part.generation_tokens - ended, ended)


def not_finite_error(model: nn.Module, prompt: str) -> OrpoError:
    """The error for a model that gives NaN for a prompt, with the reason: reads all its weights."""
    return OrpoError(
        f"The model gives NaN or infinite numbers for {prompt}: {why_not_finite(model)}."
    )
