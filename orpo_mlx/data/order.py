"""The order in which training sees the pairs: shuffled epochs whose micro-batches cost little.

Knows lengths and beginnings of prompts, not what a micro-batch computes (batching.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from orpo_mlx.data.batching import common_prefix

# A shared beginning pays from so many tokens on that are also such a part of a pair's own.
PAYING_TOKENS = 64
PAYING_PART = 0.25
# Tokens of a prompt that are compared, after those that all prompts share: bounds memory.
COMPARED_TOKENS = 2048
# The pairs of a group are sorted in so many random parts. In one they would have the same partners
# in every epoch; in two they keep about a fifth of them; each part more costs padding (200 pairs of
# UltraFeedback's lengths by fours: 5 % in one part, 9 % in two, 14 % in four).
WINDOWS = 2


def shared_beginnings(
    prompts: Sequence[np.ndarray],  # N token ids of one dtype
    lengths: np.ndarray,  # (N,) tokens computed for each pair
    *,
    micro_batch_size: int = 2,
) -> np.ndarray:
    """(N,) int: the group of each pair whose prompts share a beginning so long that computing it
    once for a micro-batch pays; -1: none.

    What all prompts share counts for nothing: every micro-batch shares it. A group inside another
    (prompts under a tool list under a system prompt) is one of its own where what it shares beyond
    the outer one's beginning pays again, less what its members beyond whole micro-batches lose.
    """
    size = max(micro_batch_size, 2)
    # Of all sequences between two in this order, each begins with what the two share.
    first, last = (end(prompts, key=lambda prompt: prompt.tobytes()) for end in (min, max))
    common = common_prefix(first, last)
    alike: dict[bytes, list[int]] = {}  # by the fewest tokens that pay
    for pair, prompt in enumerate(prompts):
        if len(prompt) >= common + PAYING_TOKENS:
            beginning = prompt[common : common + PAYING_TOKENS].tobytes()
            alike.setdefault(beginning, []).append(pair)
    groups, found = np.full(len(prompts), -1), 0
    compared = slice(common, common + COMPARED_TOKENS)
    for pairs in alike.values():
        if len(pairs) < size:
            continue
        pairs.sort(key=lambda pair: prompts[pair][compared].tobytes())
        members = np.array(pairs)
        depths = np.fromiter(_neighbours_depths(prompts, pairs, compared), int, len(pairs))
        for run in _paying_runs(depths, lengths[members], size):
            groups[members[run]] = found
            found += 1
    return groups


def _neighbours_depths(
    prompts: Sequence[np.ndarray], pairs: list[int], compared: slice
) -> Iterator[int]:
    """How many tokens each of the sorted pairs shares with the one before it."""
    before = prompts[pairs[0]][compared]
    for pair in pairs:
        prompt = prompts[pair][compared]
        yield common_prefix(before, prompt)
        before = prompt


def _paying_runs(
    depths: np.ndarray,  # (n,) tokens that each sorted prompt shares with the one before it
    lengths: np.ndarray,  # (n,)
    size: int,
) -> Iterator[slice]:
    """Runs of prompts whose shared beginning pays, outer ones before those inside them."""
    totals = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    runs = [(0, len(depths), 0)]  # start, stop, tokens that the group around it shares
    while runs:
        start, stop, outer = runs.pop()
        count, inner = stop - start, depths[start + 1 : stop]
        depth = int(inner.min())
        saved = count // size * size / count * depth - outer  # tokens a pair, more than outside
        if saved >= max(PAYING_TOKENS, PAYING_PART * (totals[stop] - totals[start]) / count):
            yield slice(start, stop)
            outer = depth
        parts = np.flatnonzero(inner < max(depth + 1, outer + PAYING_TOKENS)) + start + 1
        edges = np.concatenate([[start], parts, [stop]])
        for part in np.flatnonzero(np.diff(edges) >= size):
            runs.append((int(edges[part]), int(edges[part + 1]), outer))


class EpochOrder:
    """Micro-batches cut from one endless stream: one permutation of all pairs after another.

    An epoch is made of units of `micro_batch_size` pairs of one group and of like keys, all units
    shuffled over the whole epoch: every pair is as likely in any micro-batch as in any other. Where
    the size does not divide the pairs, a few close an epoch and open the next as they were drawn.
    """

    def __init__(
        self,
        keys: np.ndarray,  # (N, K) ints; pairs with like keys cost little padding together
        groups: np.ndarray,  # (N,) from shared_beginnings
        *,
        micro_batch_size: int,
        seed: int,
    ):
        self._size, self._seed = micro_batch_size, seed
        order = np.lexsort(keys.T[::-1])
        differ = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        self._ranks = np.zeros(len(keys), dtype=np.int64)  # places of the keys, ties alike
        self._ranks[order[1:]] = np.cumsum(differ)
        _, pools = np.unique(groups, return_inverse=True)
        self._pools = np.where(groups < 0, 0, pools + 1)  # 0: of no group
        self._orders: dict[int, np.ndarray] = {}  # of the epochs in use

    def micro_batch(self, number: int) -> np.ndarray:
        """(micro_batch_size,) the pairs of micro-batch `number` (from 0) of the stream.

        Depends on nothing but its argument, so a run resumes anywhere.
        """
        pairs = len(self._ranks)
        start, stop = number * self._size, (number + 1) * self._size
        epochs = range(start // pairs, (stop - 1) // pairs + 1)
        known = self._orders
        self._orders = {e: known[e] if e in known else self._epoch(e) for e in epochs}
        parts = [
            order[max(start - epoch * pairs, 0) : stop - epoch * pairs]
            for epoch, order in self._orders.items()
        ]
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> np.ndarray:
        """(N,) all pairs in the order of one epoch."""
        rng = np.random.default_rng([self._seed, epoch])
        drawn = rng.permutation(len(self._ranks))
        if self._size == 1:
            return drawn
        opening = -epoch * len(drawn) % self._size  # completes the last epoch's last micro-batch
        closing = max(opening, len(drawn) - (len(drawn) - opening) % self._size)
        units = self._units(drawn[opening:closing])
        return np.concatenate([drawn[:opening], rng.permutation(units).ravel(), drawn[closing:]])

    def _units(
        self,
        drawn: np.ndarray,  # (U * micro_batch_size,) pairs in random order
    ) -> np.ndarray:
        """(U, micro_batch_size) the same pairs; those of a unit are of one group and like keys."""
        by_pool, pools = self._sorted_into_pools(drawn)
        units = np.bincount(pools) // self._size  # (G,)
        windows = np.minimum(units, WINDOWS)  # (G,)
        starts = np.cumsum(units) - units
        pool = np.repeat(np.arange(len(units)), units)  # (U,)
        within = (np.arange(len(pool)) - starts[pool]) * windows[pool] // units[pool]
        window = (np.cumsum(windows) - windows)[pool] + within  # (U,)
        keys = np.repeat(window, self._size) * len(self._ranks) + self._ranks[by_pool]
        # Stable: pairs of equal keys stay in random order.
        return by_pool[np.argsort(keys, kind="stable")].reshape(-1, self._size)

    def _sorted_into_pools(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs by pool, and the pool of each; what fills no unit of its group has none."""
        pools = self._pools[drawn]
        order = np.argsort(pools, kind="stable")
        counts = np.bincount(pools)
        starts = np.cumsum(counts) - counts
        place = np.empty_like(order)
        place[order] = np.arange(len(order)) - np.repeat(starts, counts)  # within its pool
        pools = np.where(place < (counts // self._size * self._size)[pools], pools, 0)
        order = np.argsort(pools, kind="stable")
        return drawn[order], pools[order]
