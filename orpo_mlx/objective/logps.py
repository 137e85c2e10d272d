"""Log-probs of target tokens, from logits or in chunks from hidden states without keeping logits.

Knows nothing of prompts, pairs or losses.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

# A float32 sum of a whole vocabulary, term by term as MLX's CPU backend adds, loses the tail
# next to a confident token: p = 0.9998 of 50,000 tokens came out as 1.
BLOCK = 512
# Float32 logits of one chunk; up to ten arrays of this size are alive at once.
CHUNK_BYTES = 32e6
# Softmax values under 6e-8 vanish in float16: the head's gradient is formed from larger ones.
HALF_SCALE = 1024.0

# (states (C, D), number of the first among all, *parameters) -> logits (C, V)
Head = Callable[..., mx.array]
# (states (C, D), targets (C,), number of the first) -> arrays (C, ...)
ChunkFunction = Callable[[mx.array, mx.array, int], Sequence[mx.array]]


def chunk_positions(vocabulary: int) -> int:
    """How many positions go through the head at once."""
    return max(int(CHUNK_BYTES / (4 * vocabulary)), 16)


def hidden_logps(
    hidden: mx.array,  # (S, D) states that predict the targets
    targets: mx.array,  # (S,) int
    head: Head,
    *,
    parameters: Sequence[mx.array] = (),  # what is trained of the head; passed on to it
    chunk: int,  # positions
    gradient: bool = True,
) -> mx.array:
    """log softmax(head(hidden))[targets] in float32, shape (S,), `chunk` positions at a time.

    With a frozen head the vjp is formed in the same pass and the backward recomputes nothing; a
    trained head is run again, chunk by chunk. Without `gradient` neither is prepared.
    """
    if not gradient:
        return _chunked(_forward(head, parameters), hidden, targets, chunk)[0]
    if parameters:
        return _trained_head(targets, head, chunk)(hidden, *parameters)
    return _frozen_head(targets, head, chunk)(hidden)[0]


def token_logps(
    logits: mx.array,  # (S, V) any float type
    targets: mx.array,  # (S,) int
) -> mx.array:
    """log softmax(logits)[targets] in float32, shape (S,)."""
    return _softmax_logps(targets)(logits.astype(mx.float32))[0]


def _forward(head: Head, parameters: Sequence[mx.array]) -> ChunkFunction:
    return lambda h, y, start: (token_logps(head(h, start, *parameters), y),)


def _softmax_logps(targets: mx.array) -> Any:
    """Float32 logits (C, V) -> log-probs (C,) and, for their gradient, the softmax pieces.

    One exp for each entry: on the CPU the most expensive part after the head itself.
    """
    where = targets[:, None]  # (C, 1)

    @mx.custom_function
    def logps(logits: mx.array) -> list[mx.array]:
        blocks = _in_blocks(logits)  # (C, V / BLOCK, BLOCK)
        largest = blocks.max(axis=-1).max(axis=-1)  # (C,)
        weights = exp(blocks - largest[:, None, None])
        sums = weights.sum(axis=-1)  # (C, V / BLOCK)
        # The weights of the others, summed without the target: 1 - p has no cancellation.
        block = where // BLOCK
        own = mx.take_along_axis(weights, block[..., None], axis=1)[:, 0]  # (C, BLOCK)
        inside = mx.where(mx.arange(BLOCK) == where % BLOCK, 0.0, own).sum(axis=-1, keepdims=True)
        rest = mx.put_along_axis(sums, block, inside, axis=1).sum(axis=-1)
        target = mx.take_along_axis(logits, where, axis=-1)[:, 0] - largest
        share = rest / mx.exp(target)  # infinite for a target of weight 0
        total = rest + mx.exp(target)
        values = mx.where(share < 1, -mx.log1p(share), target - mx.log(total))
        return [values, weights, rest, total]

    @logps.vjp
    def backward(logits: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        _, weights, rest, total = outputs
        scale = cotangents[0] / total  # (C,)
        others = (weights * -scale[:, None, None]).reshape(len(weights), -1)
        return mx.put_along_axis(
            others[:, : logits.shape[-1]], where, (scale * rest)[:, None], axis=-1
        )

    return logps


def exp(values: mx.array) -> mx.array:
    """exp; on the CPU as a power of the float32 next to e: a third of the time, and off by
    3e-8 of the exponent, which is half of what rounding the exponent costs."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return mx.power(math.e, values)
    return mx.exp(values)


def _in_blocks(logits: mx.array) -> mx.array:
    """(C, V) as (C, V / BLOCK, BLOCK), filled up with -inf."""
    padding = -logits.shape[-1] % BLOCK
    if padding:
        logits = mx.pad(logits, [(0, 0), (0, padding)], constant_values=-mx.inf)
    return logits.reshape(len(logits), -1, BLOCK)


def _frozen_head(targets: mx.array, head: Head, chunk: int) -> Any:
    """States -> log-probs and g, their gradient by the states in float32."""

    def both(states: mx.array, wanted: mx.array, start: int) -> tuple[mx.array, mx.array]:
        scale = HALF_SCALE if states.dtype == mx.float16 else 1.0
        scales = mx.full(states.shape[0], scale, dtype=mx.float32)
        (logps,), (g,) = mx.vjp(lambda h: token_logps(head(h, start), wanted), [states], [scales])
        return logps, g.astype(mx.float32) / scale

    @mx.custom_function
    def run(hidden: mx.array) -> list[mx.array]:
        return _chunked(both, hidden, targets, chunk)

    @run.vjp
    def backward(hidden: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype)

    return run


def _trained_head(targets: mx.array, head: Head, chunk: int) -> Any:
    """States and the head's parameters -> log-probs; the backward runs the head again."""

    @mx.custom_function
    def run(hidden: mx.array, *parameters: mx.array) -> mx.array:
        return _chunked(_forward(head, parameters), hidden, targets, chunk)[0]

    @run.vjp
    def backward(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> list[mx.array]:
        hidden, *parameters = primals
        sums: list[mx.array] = [mx.zeros(p.shape, dtype=mx.float32) for p in parameters]
        by_state: list[mx.array] = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            # After the previous chunk, else the logits of all chunks would be alive at once.
            states = mx.depends([hidden[part]], [*by_state[-1:], *sums])[0]
            _, (g, *gs) = mx.vjp(
                lambda h, *ps, at=start: token_logps(head(h, at, *ps), targets[at : at + chunk]),
                [states, *parameters],
                [cotangent[part]],
            )
            by_state.append(g)
            sums = [s + g.astype(mx.float32) for s, g in zip(sums, gs, strict=True)]
        typed = [s.astype(p.dtype) for s, p in zip(sums, parameters, strict=True)]
        return [mx.concatenate(by_state), *typed]

    return run


def _chunked(
    function: ChunkFunction,
    hidden: mx.array,
    targets: mx.array,
    chunk: int,
) -> list[mx.array]:
    """The function's results on one chunk after another, concatenated."""
    parts: list[Sequence[mx.array]] = []
    for start in range(0, len(hidden), chunk):
        states = hidden[start : start + chunk]
        if parts:
            states = mx.depends([states], list(parts[-1]))[0]
        parts.append(function(states, targets[start : start + chunk], start))
    return [mx.concatenate(list(column)) for column in zip(*parts, strict=True)]
