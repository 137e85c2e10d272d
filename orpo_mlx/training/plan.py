"""Which pairs each step computes together, and to which lengths they are rounded."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.batching.micro_batches import cut_by_group, cut_by_shape
from orpo_mlx.data.batching.order import EpochOrder, shared_beginnings, shared_by_all
from orpo_mlx.data.batching.prefix_tree import (
    CALL_TOKENS,
    SHORTEST,
    build_batch,
    pair_shapes,
    round_down,
)
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import longest_row, pair_lengths
from orpo_mlx.run_folder.settings import RULES

# Values per octave that lengths are rounded to where shapes are compiled: the finest with which the
# pairs have at most MAX_SHAPES shapes.
ROUNDINGS = (8, 4, 2, 1)
MAX_SHAPES = 128
# Pairs of a unit: 8 where the batch size is a multiple of it, else the largest divisor up to
# MOST_ALIKE. Fewer cost up to 75 % more under many system prompts (docs/defaults.md).
USUAL_UNIT, MOST_ALIKE = 8, 15
USUAL_MICRO_BATCH = 4  # by which groups inside others are judged
LEVELS = 3  # calls that a micro-batch has at least: batch prefix, pair prefixes, tails
PADDING_SAMPLE = 256
AUTO_TOKENS = 2048


class Plan:
    """The micro-batches of every step; `rounding` is build_batch's, 0 where nothing is compiled.

    A step is made of whole units of like pairs. Which pairs it takes follows from the data, the
    seed, the batch size and `rounded`; by rules 1 and 2 a unit is a micro-batch.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        config: TrainConfig,
        *,
        rounded: bool,
        layout: str = "tree",
        rules: int = RULES,
    ):
        self._pairs, self.layout, self._rules = pairs, layout, rules
        self._batch_size = config.batch_size
        lengths = pair_lengths(pairs)
        self._shared = shared = shared_by_all(pairs)
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
        self._unit = self.micro_batch_size if rules < 3 else unit_size(config.batch_size)
        usual = self._unit if rules < 3 else min(self._unit, USUAL_MICRO_BATCH)
        # Compiled, each group has shapes of its own: small ones are not worth them.
        smallest = 2 if rules >= 3 and not rounded else None
        groups = shared_beginnings(
            pairs, tokens, common=shared, micro_batch_size=usual, smallest=smallest
        )
        self.rounding, keys = 0, tokens[:, None]
        if rounded:
            self.rounding, self._depths, keys = _rounded(pairs, lengths, groups, shared)
            # Pairs of one shape only, so that the remainder of each is the same every epoch.
            groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        self._groups, self._tokens = groups, tokens
        self._order = EpochOrder(
            keys, groups, unit_size=self._unit, seed=config.seed, together=rules >= 3
        )

    def step(self, step: int) -> list[np.ndarray]:
        """The pairs of optimizer step `step` (from 0), an array for each micro-batch.

        Depends on nothing but its argument, so a run resumes at any step.
        """
        count = self._batch_size // self._unit
        return self._cut([self._order.unit(step * count + k) for k in range(count)])

    def limit(self, micro_batch: np.ndarray) -> int | None:
        """The bound on the batch prefix of pairs of one shape, so that it too has few values."""
        return int(self._depths[micro_batch[0]]) if self.rounding else None

    def sample(self) -> tuple[float, float]:
        """Of the first micro-batches: the share of computed positions that hold no token, and
        the positions computed for a pair."""
        count = min(PADDING_SAMPLE, -(-len(self._pairs) // self.micro_batch_size))
        if self._rules < 3:  # whether states are kept depends on it, and then the last bits
            parts = self._cut([self._order.unit(n) for n in range(count)])
        else:
            steps = -(-count * self.micro_batch_size // self._batch_size)
            parts = [part for step in range(steps) for part in self.step(step)]
        settings: dict[str, Any] = {"layout": self.layout, "rounding": self.rounding}
        batches = [
            build_batch(self._pairs, part, limit=self.limit(part), **settings) for part in parts
        ]
        computed = sum(b.computed for b in batches)
        pairs = sum(len(b.indices) for b in batches)
        return sum(b.padding for b in batches) / computed, computed / pairs

    def _cut(self, units: list[np.ndarray]) -> list[np.ndarray]:
        """The micro-batches of these units."""
        if self._rules < 3:
            return [part for unit in units for part in self._split_by_shape(unit)]
        pairs, size = np.concatenate(units), self.micro_batch_size
        if self.rounding:
            return cut_by_shape(pairs, self._groups[pairs], min(size, self._unit))
        groups = self._groups[pairs] if self.layout == "tree" else np.full(len(pairs), -1)
        return cut_by_group(pairs, groups, self._tokens[pairs], size, self._pays_apart)

    def _split_by_shape(self, micro_batch: np.ndarray) -> list[np.ndarray]:
        """All of the micro-batch, or pair by pair where that bounds the number of shapes."""
        if not self.rounding or len(np.unique(self._groups[micro_batch])) == 1:
            return [micro_batch]
        return [micro_batch[k : k + 1] for k in range(len(micro_batch))]

    def _pays_apart(self, micro_batch: np.ndarray) -> bool:
        """Whether pairs save more by a micro-batch of their own than one more of them costs."""
        own = shared_by_all([self._pairs[int(i)] for i in micro_batch]) - self._shared
        return (len(micro_batch) - 1) * own > self._shared + LEVELS * CALL_TOKENS


def unit_size(batch_size: int) -> int:
    """Pairs of a unit: a divisor of `batch_size`."""
    if batch_size % USUAL_UNIT == 0:
        return USUAL_UNIT
    return max(n for n in range(1, MOST_ALIKE + 1) if batch_size % n == 0)


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
