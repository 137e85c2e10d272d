"""Answers drawn from a model: many at once by mlx-lm's BatchGenerator, or one by one."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.layer_hooks import evaluating
from orpo_mlx.model.mlx_lm_api import BatchGenerator, make_prompt_cache, stream_generate
from orpo_mlx.sampling.keys import token_key
from orpo_mlx.training.samples.answer import not_finite_error

PREFILL_TOKENS = 2048  # of a prompt at once
# Answers join a batch when so large a share of it is free: each time its caches are copied.
REFILL_SHARE = 4
Sampler = Callable[[mx.array], mx.array]  # log-probs (B, V) to tokens (B,)


class Draw(NamedTuple):
    """An answer that is to be drawn. Those that follow the same list `ids` share its pass."""

    ids: list[int]  # of the prompt, then of what is drawn of the answer already
    seed: int  # of its keys
    start: int = 0  # how many of the answer's tokens are in `ids`


class Drawn(NamedTuple):
    """What was drawn."""

    ids: list[int]  # with the end token, if it came
    logps: list[float]  # of each of them, whatever the temperature
    ended: bool  # by an end token


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; `max_tokens` counts the end token and what was drawn before."""

    model: nn.Module
    tokenizer: Any  # mlx-lm's, which has the end tokens
    temperature: float
    max_tokens: int
    batch_size: int


class AnswerBatch:
    """Answers that grow together, each after its own prompt; they come and go at any time."""

    def __init__(self, model: nn.Module, end_ids: Sequence[int], size: int):
        self._model = model
        self._filled: tuple[list[int], list[Any]] = ([], [])
        self._generator = BatchGenerator(
            in_float32(model),
            stop_tokens=[[token] for token in end_ids],
            completion_batch_size=size,
            prefill_batch_size=size,
        )

    def insert(
        self, prompts: Sequence[list[int]], limits: Sequence[int], samplers: Sequence[Sampler]
    ) -> list[int]:
        """Let an answer begin after each prompt; returns the number of each."""
        numbers: list[int] = self._generator.insert(
            [ids[-1:] for ids in prompts],
            list(limits),
            caches=[self._cache_of(ids) for ids in prompts],  # copied where they are joined
            samplers=list(samplers),
        )
        return numbers

    def step(self) -> list[Any]:
        """One more token of each answer: uid, token, logprobs (V,), finish_reason."""
        responses: list[Any] = self._generator.next_generated()
        return responses

    def close(self) -> None:
        """Give back what MLX was asked to hold."""
        self._generator.close()

    def _cache_of(self, ids: list[int]) -> list[Any]:
        if self._filled[0] is not ids:
            self._filled = (ids, fill_cache(self._model, ids))
        return self._filled[1]


def draw_in_batches(how: Drawing, draws: Sequence[Draw]) -> Iterator[tuple[int, Drawn]]:
    """The answers as they come to an end, each with its index; raises OrpoError for NaN."""
    batch = AnswerBatch(how.model, sorted(how.tokenizer.eos_token_ids), how.batch_size)
    waiting = deque(range(len(draws)))
    running = dict[int, tuple[int, Drawn]]()
    with evaluating(how.model), closing(batch):
        while waiting or running:
            free = how.batch_size - len(running)
            if free >= max(how.batch_size // REFILL_SHARE, 1) or free >= len(waiting):
                indices = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                running |= _insert(batch, how, draws, indices)
            yield from _grow(batch, how, running)


def _insert(
    batch: AnswerBatch, how: Drawing, draws: Sequence[Draw], indices: Sequence[int]
) -> dict[int, tuple[int, Drawn]]:
    """Let answers begin; returns what is drawn of each, nothing yet, by its number."""
    new = [draws[index] for index in indices]
    numbers = batch.insert(
        [draw.ids for draw in new],
        [how.max_tokens - draw.start for draw in new],
        [sampler_of(draw, how.temperature) for draw in new],
    )
    rows = ((index, Drawn([], [], False)) for index in indices)
    return dict(zip(numbers, rows, strict=True))


def _grow(
    batch: AnswerBatch, how: Drawing, running: dict[int, tuple[int, Drawn]]
) -> Iterator[tuple[int, Drawn]]:
    """One more token of each answer; those that end leave `running`."""
    responses = batch.step()
    logps: Any = mx.stack([part.logprobs[part.token] for part in responses]).tolist()
    for part, logp in zip(responses, logps, strict=True):
        index, drawn = running[part.uid]
        _add(how, drawn, part.token, logp)
        if part.finish_reason:
            del running[part.uid]
            yield index, drawn._replace(ended=part.finish_reason == "stop")


def draw_one_by_one(how: Drawing, draws: Sequence[Draw]) -> Iterator[tuple[int, Drawn]]:
    """The same answers, one after another, for models that are not right in batches."""
    filled, cache = list[int](), list[Any]()
    with evaluating(how.model):
        for index, draw in enumerate(draws):
            if draw.ids is not filled:
                filled, cache = draw.ids, fill_cache(how.model, draw.ids)
            yield index, _draw_alone(how, draw, copy.deepcopy(cache))


def _draw_alone(how: Drawing, draw: Draw, cache: list[Any]) -> Drawn:
    drawn, reason = Drawn([], [], False), ""
    for part in stream_generate(
        in_float32(how.model),
        how.tokenizer,
        draw.ids[-1:],
        max_tokens=how.max_tokens - draw.start,
        sampler=sampler_of(draw, how.temperature),
        prompt_cache=cache,
    ):
        # Its last part repeats a token only where no end token came.
        _add(how, drawn, part.token, part.logprobs[part.token].item())
        reason = part.finish_reason
    return drawn._replace(ended=reason == "stop")


def _add(how: Drawing, drawn: Drawn, token: int, logp: float) -> None:
    if logp != logp:
        raise not_finite_error(how.model, "a prompt")
    drawn.ids.append(token)
    drawn.logps.append(logp)


def in_float32(model: nn.Module) -> Callable[..., mx.array]:
    """The model with logits in float32, in which log-probs are made of them."""
    return lambda ids, cache: model(ids, cache=cache).astype(mx.float32)


def fill_cache(model: nn.Module, ids: list[int]) -> list[Any]:
    """The caches of a model after all ids but the last."""
    cache: list[Any] = make_prompt_cache(model)
    for start in range(0, len(ids) - 1, PREFILL_TOKENS):
        part = ids[start : min(start + PREFILL_TOKENS, len(ids) - 1)]
        model(mx.array([part]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


def sampler_of(draw: Draw, temperature: float) -> Sampler:
    """Draws the tokens of an answer, each with its own key; the likeliest at temperature 0."""
    if not temperature:
        return likeliest
    position = draw.start - 1

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal position
        position += 1
        return mx.random.categorical(logprobs / temperature, key=token_key(draw.seed, position))

    return sample


def likeliest(logprobs: mx.array) -> mx.array:
    """The likeliest token of each row."""
    return mx.argmax(logprobs, axis=-1)
