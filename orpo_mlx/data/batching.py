"""Micro-batches of pairs, and the seeded, resumable order in which training sees them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orpo_mlx.data.encoding import EncodedPair

AUTO_TOKENS = 4096


class Batch(NamedTuple):
    """B pairs as 2B right-padded rows: the chosen first, then the rejected.

    `targets[i, t]` is the token after `inputs[i, t]`; the masks are True where that target is a
    token of the response, or of the prompt.
    """

    inputs: np.ndarray  # (2B, T) int32
    targets: np.ndarray  # (2B, T) int32
    response_mask: np.ndarray  # (2B, T) bool
    prompt_mask: np.ndarray  # (2B, T) bool
    indices: np.ndarray  # (B,) positions of the pairs in the data
    tokens: int  # non-padding tokens of prompt + chosen and of prompt + rejected


def build_batch(pairs: Sequence[EncodedPair], indices: Sequence[int] | np.ndarray) -> Batch:
    """The rows of the pairs at `indices`, padded to the longest."""
    chosen = [(pairs[i].prompt, pairs[i].chosen) for i in indices]
    rejected = [(pairs[i].prompt, pairs[i].rejected) for i in indices]
    rows = chosen + rejected
    length = max(len(p) + len(r) for p, r in rows)
    tokens = np.zeros((len(rows), length), dtype=np.int32)
    position = np.arange(length)
    prompt_ends = np.array([[len(p)] for p, _ in rows])
    ends = np.array([[len(p) + len(r)] for p, r in rows])
    for row, (prompt, response) in zip(tokens, rows, strict=True):
        row[: len(prompt)] = prompt
        row[len(prompt) : len(prompt) + len(response)] = response
    in_response = (position >= prompt_ends) & (position < ends)
    in_prompt = position < prompt_ends
    return Batch(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        response_mask=in_response[:, 1:],
        prompt_mask=in_prompt[:, 1:],
        indices=np.asarray(indices),
        tokens=int(ends.sum()),
    )


def step_indices(step: int, *, batch_size: int, pairs: int, seed: int) -> np.ndarray:
    """The pairs of optimizer step `step` (from 0): a stream of shuffled epochs, without gaps.

    Depends on nothing but its arguments, so a run resumes at any step.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // pairs
    orders = {e: np.random.default_rng([seed, e]).permutation(pairs) for e in np.unique(epochs)}
    return np.array([orders[e][p % pairs] for e, p in zip(epochs, positions, strict=True)])


def auto_micro_batch_size(batch_size: int, longest: int) -> int:
    """The largest divisor of `batch_size` whose padded pairs stay under AUTO_TOKENS, or 1."""
    fits = [n for n in range(1, batch_size + 1)
            if batch_size % n == 0 and 2 * n * longest <= AUTO_TOKENS]  # fmt: skip
    return max(fits, default=1)
