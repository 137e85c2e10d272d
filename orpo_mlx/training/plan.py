"""Which pairs each step computes together, and to which lengths they are rounded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.batching.order import EpochOrder, shared_beginnings, shared_by_all
from orpo_mlx.data.batching.prefix_tree import (
    CALL_TOKENS,
    SHORTEST,
    build_batch,
    pair_shapes,
    round_down,
)
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.store import longest_row, pair_lengths

# Values per octave that lengths are rounded to where shapes are compiled: the finest with which the
# pairs have at most MAX_SHAPES shapes.
ROUNDINGS = (8, 4, 2, 1)
MAX_SHAPES = 128
PADDING_SAMPLE = 256
AUTO_TOKENS = 2048


class Plan:
    """The micro-batches of every step; `rounding` is build_batch's, 0 where nothing is compiled."""

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        config: TrainConfig,
        *,
        rounded: bool,
        layout: str = "tree",
    ):
        self._pairs, self.layout = pairs, layout
        lengths = pair_lengths(pairs)
        shared = shared_by_all(pairs)
        depths = np.full(len(pairs), shared, dtype=np.int32)
        tokens = pair_shapes(lengths, depths, 0)[:, :3].sum(axis=1, dtype=np.int32)
        longest, common = int(tokens.max()), shared
        if layout != "tree":
            longest, common = 2 * longest_row(lengths), 0
        self.micro_batch_size = (
            auto_micro_batch_size(config.batch_size, longest, common)
            if config.micro_batch_size == "auto"
            else config.micro_batch_size
        )
        size = self.micro_batch_size
        groups = shared_beginnings(pairs, tokens, common=shared, micro_batch_size=size)
        self.rounding, keys = 0, tokens[:, None]
        if rounded:
            self.rounding, self._depths, keys = _rounded(pairs, lengths, groups, shared)
            # Pairs of one shape only, so that the remainder of each is the same every epoch.
            groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        self._keys = keys
        self._micro_steps = config.batch_size // self.micro_batch_size
        self._order = EpochOrder(keys, groups, micro_batch_size=size, seed=config.seed)

    def step(self, step: int) -> list[np.ndarray]:
        """The pairs of optimizer step `step` (from 0), an array for each micro-batch.

        Depends on nothing but its argument, so a run resumes at any step.
        """
        start = step * self._micro_steps
        micro_batches = [self._order.micro_batch(start + k) for k in range(self._micro_steps)]
        return [part for micro_batch in micro_batches for part in self._split_by_shape(micro_batch)]

    def limit(self, micro_batch: np.ndarray) -> int | None:
        """The bound on the batch prefix of pairs of one shape, so that it too has few values."""
        return int(self._depths[micro_batch[0]]) if self.rounding else None

    def sample(self) -> tuple[float, float]:
        """Of the first micro-batches: the share of computed positions that hold no token, and
        the positions computed for a pair."""
        count = min(PADDING_SAMPLE, -(-len(self._pairs) // self.micro_batch_size))
        parts = [p for n in range(count) for p in self._split_by_shape(self._order.micro_batch(n))]
        settings: dict[str, Any] = {"layout": self.layout, "rounding": self.rounding}
        batches = [
            build_batch(self._pairs, part, limit=self.limit(part), **settings) for part in parts
        ]
        computed = sum(b.computed for b in batches)
        pairs = sum(len(b.indices) for b in batches)
        return sum(b.padding for b in batches) / computed, computed / pairs

    def _split_by_shape(self, micro_batch: np.ndarray) -> list[np.ndarray]:
        """All of the micro-batch, or pair by pair where that bounds the number of shapes."""
        if not self.rounding or len(np.unique(self._keys[micro_batch], axis=0)) == 1:
            return [micro_batch]
        return [micro_batch[k : k + 1] for k in range(len(micro_batch))]


def auto_micro_batch_size(batch_size: int, longest: int, shared: int) -> int:
    """The largest divisor of `batch_size` whose pairs stay under AUTO_TOKENS, or 1.

    `longest`: tokens computed for the longest pair, besides the `shared` ones of all prompts.
    """
    fits = [
        n
        for n in range(1, batch_size + 1)
        if batch_size % n == 0 and shared + n * longest <= AUTO_TOKENS
    ]
    return max(fits, default=1)


def _rounded(
    pairs: Sequence[EncodedPair], lengths: np.ndarray, groups: np.ndarray, shared: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """The rounding; the batch prefix of each pair, (N,), which is that of its group, or of all;
    and what determines the shapes of each pair, alone and with others, (N, 9)."""
    most = {-1: min(shared, int(lengths[:, 0].min()) - SHORTEST)}
    for group in np.unique(groups[groups >= 0]):
        members = [pairs[int(member)] for member in np.flatnonzero(groups == group)]
        shortest = min(len(pair.prompt) for pair in members)
        most[int(group)] = min(shared_by_all(members), shortest - SHORTEST)
    for rounding in ROUNDINGS:
        # A prefix shorter than the cost of a call gets no level, whatever the number of pairs.
        kept = {g: round_down(d, rounding) if d >= CALL_TOKENS else 0 for g, d in most.items()}
        depths = np.array([kept[int(group)] for group in groups], dtype=np.int32)
        alone = pair_shapes(lengths, np.zeros_like(depths), rounding)
        keys = np.column_stack([groups, alone, pair_shapes(lengths, depths, rounding)])
        if len(np.unique(keys, axis=0)) <= MAX_SHAPES:
            break
    return rounding, depths, keys
