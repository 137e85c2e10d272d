"""Which pairs each step computes together, and in lengths of how many kinds."""

from collections.abc import Sequence

import numpy as np

from orpo_mlx.config import TrainConfig
from orpo_mlx.data.batching import build_batch, common_prefix, pair_shapes
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.data.order import EpochOrder, shared_beginnings

# Values an octave that lengths are rounded to where shapes are compiled: the finest of these with
# which the pairs have at most MAX_SHAPES shapes.
ROUNDINGS = (8, 4, 2, 1)
MAX_SHAPES = 128
PADDING_SAMPLE = 256
AUTO_TOKENS = 4096


class Plan:
    """The micro-batches of every step; `rounding` is build_batch's, 0 where nothing is compiled."""

    def __init__(self, pairs: Sequence[EncodedPair], config: TrainConfig, *, rounded: bool):
        self._pairs = pairs
        prompts = [pair.prompt for pair in pairs]
        shared = _shared_by_all(prompts)
        tokens = pair_shapes(pairs, shared, 0).sum(axis=1)
        self.micro_batch_size = (
            auto_micro_batch_size(config.batch_size, int(tokens.max()), shared)
            if config.micro_batch_size == "auto"
            else config.micro_batch_size
        )
        size = self.micro_batch_size
        groups = shared_beginnings(prompts, tokens, micro_batch_size=size)
        self.rounding, keys = 0, tokens[:, None]
        if rounded:
            self.rounding, keys = _rounded(pairs, shared, groups)
            # Pairs of one shape only, so that what is left over of each is the same every epoch.
            groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        self._keys = keys
        self._micro_steps = config.batch_size // self.micro_batch_size
        self._order = EpochOrder(keys, groups, micro_batch_size=size, seed=config.seed)

    def step(self, step: int) -> list[np.ndarray]:
        """The pairs of optimizer step `step` (from 0), a micro-batch each.

        Depends on nothing but its argument, so a run resumes at any step.
        """
        start = step * self._micro_steps
        found = [self._order.micro_batch(start + k) for k in range(self._micro_steps)]
        return [part for micro_batch in found for part in self._alike(micro_batch)]

    def padding(self, layout: str = "tree") -> float:
        """The share of computed positions that hold no token, in the first micro-batches."""
        count = min(PADDING_SAMPLE, -(-len(self._pairs) // self.micro_batch_size))
        parts = [p for n in range(count) for p in self._alike(self._order.micro_batch(n))]
        batches = [
            build_batch(self._pairs, part, layout=layout, rounding=self.rounding) for part in parts
        ]
        return sum(b.padding for b in batches) / sum(b.computed for b in batches)

    def _alike(self, micro_batch: np.ndarray) -> list[np.ndarray]:
        """The micro-batch whole, or pair by pair where that keeps the number of shapes bounded."""
        if not self.rounding or len(np.unique(self._keys[micro_batch], axis=0)) == 1:
            return [micro_batch]
        return [micro_batch[k : k + 1] for k in range(len(micro_batch))]


def auto_micro_batch_size(batch_size: int, longest: int, shared: int) -> int:
    """The largest divisor of `batch_size` whose pairs stay under AUTO_TOKENS, or 1.

    `longest`: tokens computed for the longest pair, besides the `shared` ones of all prompts.
    """
    fits = [n for n in range(1, batch_size + 1)
            if batch_size % n == 0 and shared + n * longest <= AUTO_TOKENS]  # fmt: skip
    return max(fits, default=1)


def _shared_by_all(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens all prompts begin with alike."""
    first = prompts[0]
    return min(common_prefix(first, prompt) for prompt in prompts)


def _rounded(
    pairs: Sequence[EncodedPair], shared: int, groups: np.ndarray
) -> tuple[int, np.ndarray]:
    """The rounding, and for each pair its shape after its group, (N, 4)."""
    for rounding in ROUNDINGS:
        keys = np.column_stack([groups, pair_shapes(pairs, shared, rounding)])
        if len(np.unique(keys, axis=0)) <= MAX_SHAPES:
            break
    return rounding, keys
