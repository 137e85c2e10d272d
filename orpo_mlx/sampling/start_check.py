"""At the start: whether a model computes the same in batches as mlx-lm does one by one."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.layer_hooks import ERRORS, evaluating
from orpo_mlx.model.mlx_lm_api import make_prompt_cache, stream_generate
from orpo_mlx.sampling.batches import AnswerBatch, Sampler, in_float32
from orpo_mlx.training.checks.self_check import computes_float32
from orpo_mlx.training.samples.answer import not_finite_error

TOKENS = 4  # that are compared, of each answer
# Of log-probs: the largest difference over the vocabulary in float32, the mean one in half
# precision. On a base of 30 layers, bfloat16 moves that by 0.05 to 0.32, a wrong mask or position
# by 0.8 to 7.
TOLERANCES = {"float32": 1e-4, "half": 0.6}
ALIKE = 0.75  # two lengths whose ratio is above it hide what is wrong with padding


def why_not_in_batches(model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]]) -> str:
    """Why answers to these prompts go one by one; "" if they can be drawn in batches.

    The shortest and the longest prompt are answered greedily, in a batch that one answer leaves
    and another joins. Raises OrpoError for a model that gives NaN.
    """
    short, *_, long = sorted([*prompts, prompts[0]], key=len)
    if len(short) > ALIKE * len(long):
        short = long[: (len(long) + 1) // 2]
    kind = "float32" if computes_float32(model) else "half"
    with evaluating(model):
        alone = [list(_answer_alone(model, tokenizer, ids)) for ids in (short, long)]
        try:
            gaps = _gaps(model, (short, long), alone)
            gap = max(gaps, key=lambda gap: gap[kind])[kind]
        except ERRORS as error:
            return f"{type(error).__name__}: {error}"
    tolerance = TOLERANCES[kind]
    return "" if gap <= tolerance else f"log-probs differ by {gap:.1g} from those of one answer"


def _answer_alone(
    model: nn.Module, tokenizer: Any, ids: list[int]
) -> Iterator[tuple[int, mx.array]]:
    """Tokens of mlx-lm's greedy answer without an end token, and all log-probs (V,) at each."""
    ends = mx.array(sorted(tokenizer.eos_token_ids))

    def sampler(logprobs: mx.array) -> mx.array:
        return mx.argmax(mx.put_along_axis(logprobs, ends[None], mx.array(-mx.inf), -1), axis=-1)

    for part in stream_generate(
        in_float32(model),
        tokenizer,
        ids,
        max_tokens=TOKENS,
        sampler=sampler,
        prompt_cache=make_prompt_cache(model),
    ):
        if mx.isnan(part.logprobs).any().item():
            raise not_finite_error(model, "a prompt")
        yield part.token, part.logprobs


def _gaps(
    model: nn.Module,
    prompts: tuple[list[int], list[int]],
    alone: Sequence[list[tuple[int, mx.array]]],
) -> list[dict[str, float]]:
    """How far the log-probs at each token of a batch are from those alone, given the same tokens.

    Two answers to the first prompt and one to the second; one of the first ends early, and another
    to the second begins.
    """
    gaps = list[dict[str, float]]()
    with closing(AnswerBatch(model, (), size=4)) as batch:
        running = _begin(batch, prompts, alone, [(0, TOKENS), (1, TOKENS), (0, 2)])
        is_late = False
        while running:
            for part in batch.step():
                _, expected = next(running[part.uid])
                gaps.append(_gap(part.logprobs, expected))
                if part.finish_reason:
                    del running[part.uid]
            if len(running) == 2 and not is_late:
                running |= _begin(batch, prompts, alone, [(1, TOKENS)])
                is_late = True
    return gaps


def _begin(
    batch: AnswerBatch,
    prompts: Sequence[list[int]],
    alone: Sequence[list[tuple[int, mx.array]]],
    answers: Sequence[tuple[int, int]],  # index of the prompt, tokens
) -> dict[int, Iterator[tuple[int, mx.array]]]:
    """Let answers begin that repeat those alone; returns what is expected of each by its number."""
    numbers = batch.insert(
        [prompts[prompt] for prompt, _ in answers],
        [tokens for _, tokens in answers],
        [_repeating([token for token, _ in alone[prompt]]) for prompt, _ in answers],
    )
    expected = (iter(alone[prompt]) for prompt, _ in answers)
    return dict(zip(numbers, expected, strict=True))


def _repeating(tokens: Sequence[int]) -> Sampler:
    """Gives these tokens, whatever the log-probs; then, for what is computed ahead, any."""
    left = iter(tokens)
    return lambda logprobs: mx.array([next(left, 0)])


def _gap(one: mx.array, other: mx.array) -> dict[str, float]:
    """By precision, what is compared; where both are -inf there is none, NaN is infinitely far."""
    far = mx.where(one == other, 0.0, mx.abs(one - other))
    far = mx.where(mx.isnan(far), mx.inf, far)
    return {"float32": float(far.max()), "half": float(far.mean())}
