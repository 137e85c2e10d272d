"""Floating-point operations of a step, from shapes, and the least that its tokens need."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.tokens.encoder import common_prefix


class Dimensions(NamedTuple):
    """A dense decoder with adapters on its last blocks."""

    layers: int
    trained_layers: int
    hidden: int
    heads: int
    head_dim: int
    vocabulary: int
    linear: int  # weights of the linear layers of one block
    adapter: int  # trained weights of one adapted block


class CallShape(NamedTuple):
    """A call of the backbone."""

    rows: int
    tokens: int  # of each row, padding included
    before: int  # keys before them, of the calls that this one continues


class Arithmetic(NamedTuple):
    """Floating-point operations by part; a multiplication and an addition are two."""

    linear: int
    attention: int
    adapter: int
    head: int


class Need(NamedTuple):
    """What pairs need at least: every distinct beginning of a row computed once."""

    tokens: int
    keys: int  # keys that they see, themselves included
    scored: int  # of them, those after which a response token is predicted


def count_calls(
    calls: Iterable[CallShape], scored: int, dimensions: Dimensions, **work: Any
) -> Arithmetic:
    """Operations of these calls with the head at `scored` positions.

    Attention is counted as the full rectangle of queries and keys, masked entries included:
    that is what a matmul computes. `work` is that of `count`.
    """
    shapes = [CallShape(*call) for call in calls]
    tokens = sum(s.rows * s.tokens for s in shapes)
    keys = sum(s.rows * s.tokens * (s.before + s.tokens) for s in shapes)
    return count(Need(tokens, keys, scored), dimensions, **work)


def count(
    need: Need, dimensions: Dimensions, *, recomputed: int = 0, kept_trunk: bool = False
) -> Arithmetic:
    """Operations forward and backward for tokens, keys and scored positions.

    The frozen base has no weight gradients, and blocks below the first adapted one no backward.
    `recomputed`: so many checkpointed blocks run forward once more. `kept_trunk`: the blocks below
    are not run at all. The projections of the first adapted block need no input gradient, which is
    left in: under 1 % at 30 blocks. Norms, rope and softmax are left out.
    """
    d = dimensions
    forward = (d.trained_layers if kept_trunk else d.layers) + recomputed
    adapted = d.trained_layers + recomputed
    width = 2 * d.heads * d.head_dim  # per query and key, for each of q k^T and weights v
    return Arithmetic(
        linear=2 * d.linear * need.tokens * (forward + d.trained_layers),
        # Backward: the gradients of q, k, v and of the weights, two matmuls for one forward.
        attention=width * need.keys * (2 * forward + 4 * d.trained_layers),
        # Backward: input and weight gradient.
        adapter=2 * d.adapter * need.tokens * (adapted + 2 * d.trained_layers),
        head=4 * d.hidden * d.vocabulary * need.scored,
    )


def least_need(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Need:
    """What rows of prompt + response need; the last token of a response is never an input."""
    rows = sorted(
        ((*prompt, *response[:-1]), len(prompt) - 1)
        for prompt, response in zip(prompts, responses, strict=True)
    )
    tokens = keys = 0
    before = np.array([], np.int64)
    counted: list[bool] = []  # of each beginning of the row before: scored for some row
    scored = 0
    for ids, start in rows:
        row = np.array(ids)
        shared = common_prefix(before, row)
        tokens += len(row) - shared
        keys += (len(row) * (len(row) + 1) - shared * (shared + 1)) // 2
        counted = counted[:shared] + [False] * (len(row) - shared)
        scored += counted[start:].count(False)
        counted[start:] = [True] * (len(row) - start)
        before = row
    return Need(tokens, keys, scored)
