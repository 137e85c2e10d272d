"""The order in which training sees the pairs: shuffled epochs whose micro-batches cost little.

Knows lengths and beginnings of prompts, not what a micro-batch computes (prefix_tree.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from orpo_mlx.data.tokens.encoder import EncodedPair, common_prefix
from orpo_mlx.data.tokens.store import Prompts, iter_prompts

# A shared beginning pays from so many tokens on that are also such a part of a pair's own.
PAYING_TOKENS = 64
PAYING_PART = 0.25
# Tokens of a prompt that are compared, after those that all prompts share: bounds memory.
COMPARED_TOKENS = 2048
# The pairs of a group are sorted in so many random parts. In one they would have the same partners
# in every epoch; in two they keep about a fifth of them; each part more costs padding (200 pairs of
# UltraFeedback's lengths by fours: 5 % in one part, 9 % in two, 14 % in four).
WINDOWS = 2
COLUMNS = 8  # of ids that are sorted by at once, a part of PAYING_TOKENS
# Odd, so that no bit of an id is lost: a hash of PAYING_TOKENS ids.
_FACTORS = np.random.default_rng(0).integers(0, 2**64, PAYING_TOKENS, np.uint64) | np.uint64(1)


def shared_by_all(pairs: Sequence[EncodedPair]) -> int:
    """How many tokens all prompts begin with alike."""
    first = pairs[0].prompt
    shared = len(first)
    for prompts in iter_prompts(pairs, np.arange(len(pairs))):
        shared = min(shared, int(prompts.lengths.min()))
        ids = prompts.ids[prompts.starts[:, None] + np.arange(shared)]  # (n, shared)
        differ = (ids != first[:shared]).any(axis=0)
        shared = int(differ.argmax()) if differ.any() else shared
    return shared


def shared_beginnings(
    pairs: Sequence[EncodedPair],
    lengths: np.ndarray,  # (N,) tokens computed for each pair
    *,
    common: int,
    micro_batch_size: int = 2,
    smallest: int | None = None,  # members of a group; None: a micro-batch
) -> np.ndarray:
    """(N,) int32: the group of each pair whose prompts share a beginning so long that computing it
    once for a micro-batch pays; -1: none.

    What all prompts share, `common` tokens, counts for nothing: every micro-batch shares it. A
    group inside another (prompts under a tool list under a system prompt) is one of its own where
    what it shares beyond the outer one's beginning pays again, less what its members beyond full
    micro-batches lose. A group inside another has at least a micro-batch of members.
    """
    size = max(micro_batch_size, 2)
    least = max(smallest or size, 2)
    hashes = _hashes(pairs, np.arange(len(pairs)), common)
    groups, number = np.full(len(pairs), -1, dtype=np.int32), 0
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    for run in _equal_runs(hashes[order], least):
        if hashes[order[run.start]] == 0:
            continue
        members = _sort(pairs, order[run], common + PAYING_TOKENS, common + COMPARED_TOKENS, least)
        depths = np.fromiter(_adjacent_depths(pairs, members, common), int, len(members))
        for paying in _paying_runs(depths, lengths[members], size, least):
            groups[members[paying]] = number
            number += 1
    return groups


def _sort(
    pairs: Sequence[EncodedPair], members: np.ndarray, at: int, stop: int, size: int
) -> np.ndarray:
    """The members by their ids from `at` on, so that those that share a beginning are adjacent.

    Where fewer than `size` share it up to some position, they stay as they are.
    """
    if at >= stop:
        return members
    hashes = _hashes(pairs, members, at)
    if (hashes != hashes[0]).any():
        # By the last ids of the block first, stable, a few columns at a time: bounds memory.
        for first in range(at + PAYING_TOKENS - COLUMNS, at - 1, -COLUMNS):
            columns = _columns(pairs, members, first)
            members = members[np.lexsort(columns.T[::-1])]
        hashes = _hashes(pairs, members, at)
    parts, end = [], 0
    for run in _equal_runs(hashes, size):
        more = members[run]
        more = _sort(pairs, more, at + PAYING_TOKENS, stop, size) if hashes[run.start] else more
        parts += [members[end : run.start], more]
        end = run.stop
    return np.concatenate([*parts, members[end:]])


def _equal_runs(hashes: np.ndarray, size: int) -> Iterator[slice]:
    """Where `size` or more adjacent hashes are equal."""
    edges = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    counts = np.diff(np.append(edges, len(hashes)))
    for run in np.flatnonzero(counts >= size):
        yield slice(int(edges[run]), int(edges[run] + counts[run]))


def _hashes(pairs: Sequence[EncodedPair], members: np.ndarray, at: int) -> np.ndarray:
    """(n,) uint64 of the PAYING_TOKENS ids of each member from `at` on, 0 for those without."""
    hashes = np.zeros(len(members), dtype=np.uint64)
    for prompts in iter_prompts(pairs, members):
        hashes[prompts.positions] = _hash(prompts, at)
    return hashes


def _columns(pairs: Sequence[EncodedPair], members: np.ndarray, at: int) -> np.ndarray:
    """(n, COLUMNS) ids of each member from `at` on, -1 after its end."""
    columns = np.full((len(members), COLUMNS), -1, dtype=np.int32)
    for prompts in iter_prompts(pairs, members):
        offsets = np.arange(at, at + COLUMNS)
        inside = offsets < prompts.lengths[:, None]
        ids = prompts.ids[np.where(inside, prompts.starts[:, None] + offsets, 0)]
        columns[prompts.positions] = np.where(inside, ids, -1)
    return columns


def _hash(prompts: Prompts, at: int) -> np.ndarray:
    """(n,) uint64 of the PAYING_TOKENS ids from `at` on; 0 where a prompt has not so many."""
    enough = np.flatnonzero(prompts.lengths >= at + PAYING_TOKENS)
    offsets = prompts.starts[enough][:, None] + np.arange(at, at + PAYING_TOKENS)
    hashes = np.zeros(len(prompts.lengths), dtype=np.uint64)
    hashes[enough] = (prompts.ids[offsets].astype(np.uint64) * _FACTORS).sum(axis=1) | np.uint64(1)
    return hashes


def _adjacent_depths(
    pairs: Sequence[EncodedPair], members: np.ndarray, common: int
) -> Iterator[int]:
    """How many tokens beyond the common ones each of the pairs shares with the one before it."""
    compared = slice(common, common + COMPARED_TOKENS)
    before = pairs[int(members[0])].prompt[compared]
    for member in members:
        prompt = pairs[int(member)].prompt[compared]
        yield common_prefix(before, prompt)
        before = prompt


def _paying_runs(
    depths: np.ndarray,  # (n,) tokens that each sorted prompt shares with the one before it
    lengths: np.ndarray,  # (n,)
    size: int,  # of a micro-batch
    least: int,  # members
) -> Iterator[slice]:
    """Runs of prompts whose shared beginning pays, outer ones before those inside them."""
    totals = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    runs = [(0, len(depths), 0)]  # start, stop, tokens that the group around it shares
    while runs:
        start, stop, outer = runs.pop()
        count, inner = stop - start, depths[start + 1 : stop]
        depth = int(inner.min())
        full = count // size * size if count >= size else count
        saved = full / count * depth - outer  # tokens a pair, more than outside
        if saved >= max(PAYING_TOKENS, PAYING_PART * (totals[stop] - totals[start]) / count):
            yield slice(start, stop)
            outer = depth
        parts = np.flatnonzero(inner < max(depth + 1, outer + PAYING_TOKENS)) + start + 1
        edges = np.concatenate([[start], parts, [stop]])
        for part in np.flatnonzero(np.diff(edges) >= (size if outer else least)):
            runs.append((int(edges[part]), int(edges[part + 1]), outer))


class EpochOrder:
    """Units cut from one endless stream: one permutation of all pairs after another.

    An epoch is made of units of `unit_size` pairs of one group and of like keys, all units shuffled
    over the whole epoch: every pair is as likely in any unit as in any other. With `together`, the
    pairs that fill no unit of their group stay in one, as far as units have room. Where the size
    does not divide the pairs, a few close an epoch and open the next as they were drawn, with
    `together` those of one group first.
    """

    def __init__(
        self,
        keys: np.ndarray,  # (N, K) ints; pairs with like keys cost little padding together
        groups: np.ndarray,  # (N,) from shared_beginnings
        *,
        unit_size: int,
        seed: int,
        together: bool = False,
    ):
        self._size, self._seed, self._together = unit_size, seed, together
        order = np.lexsort(keys.T[::-1])
        differ = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        self._ranks = np.zeros(len(keys), dtype=np.int32)  # ranks of the keys, ties alike
        self._ranks[order[1:]] = np.cumsum(differ, dtype=np.int32)
        self._pools = _number(groups)  # 0: of no group
        self._orders: dict[int, np.ndarray] = {}  # of the epochs in use

    def unit(self, number: int) -> np.ndarray:
        """(unit_size,) the pairs of unit `number` (from 0) of the stream.

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
        drawn = rng.permutation(len(self._ranks)).astype(np.int32)
        if self._size == 1:
            return drawn
        opening = -epoch * len(drawn) % self._size  # completes the last epoch's last unit
        closing = max(opening, len(drawn) - (len(drawn) - opening) % self._size)
        if self._together:
            drawn = self._like_ends(drawn, opening)
        units = self._units(drawn[opening:closing])
        return np.concatenate([drawn[:opening], rng.permutation(units).ravel(), drawn[closing:]])

    def _like_ends(self, drawn: np.ndarray, opening: int) -> np.ndarray:
        """The pairs with those that open the epoch of one group, and those that close it, as far as
        their groups go. A group's chance is as its size: a pair's stays what it was."""
        first, last = self._pools[drawn[[0, -1]]]
        drawn = drawn[np.argsort(self._pools[drawn] != first, kind="stable")]
        rest = drawn[opening:]
        by_last = np.argsort(self._pools[rest] == last, kind="stable")
        return np.concatenate([drawn[:opening], rest[by_last]])

    def _units(
        self,
        drawn: np.ndarray,  # (U * unit_size,) pairs in random order
    ) -> np.ndarray:
        """(U, unit_size) the same pairs; those of a unit are of one group and like keys."""
        pools: np.ndarray = self._pools[drawn]
        if not pools.any():
            return self._sorted_units(drawn, pools)
        sizes = self._block_sizes(pools)
        mixed = self._packed(pools, sizes)
        others = np.delete(np.arange(len(drawn)), mixed)
        whole = np.where(sizes == self._size, pools, 0)
        units = self._sorted_units(drawn[others], whole[others])
        return np.concatenate([units, drawn[mixed].reshape(-1, self._size)])

    def _packed(self, pools: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Positions of the pairs of units that hold blocks, one unit after the other."""
        small = np.flatnonzero((sizes > 1) & (sizes < self._size))
        firsts = np.unique(pools[small], return_index=True, return_inverse=True)[1:]
        # The larger blocks first; groups in random order.
        order = np.lexsort((firsts[0][firsts[1]], -sizes[small]))
        edges = np.flatnonzero(np.diff(pools[small[order]])) + 1
        units = pack_blocks(np.split(small[order], edges), self._size)
        alone = np.flatnonzero(sizes == 1)
        parts, used = [], 0
        for unit in units:
            room = self._size - sum(map(len, unit))
            parts += [*unit, alone[used : used + room]]
            used += room
        return np.concatenate(parts) if parts else small

    def _sorted_units(
        self,
        drawn: np.ndarray,  # (n,) pairs in random order
        pools: np.ndarray,  # (n,) each holds whole units
    ) -> np.ndarray:
        """(n / unit_size, unit_size) the same pairs, sorted by their keys within their pools."""
        order = np.argsort(pools, kind="stable").astype(np.int32)
        drawn, pools = drawn[order], pools[order]
        units = np.bincount(pools) // self._size  # (G,)
        windows = np.minimum(units, WINDOWS)  # (G,)
        starts = np.cumsum(units) - units
        pool = np.repeat(np.arange(len(units)), units)  # (U,)
        within = (np.arange(len(pool)) - starts[pool]) * windows[pool] // units[pool]
        window = (np.cumsum(windows) - windows)[pool] + within  # (U,)
        keys = np.repeat(window, self._size) * len(self._ranks) + self._ranks[drawn]
        # Stable: pairs of equal keys stay in random order.
        return drawn[np.argsort(keys, kind="stable")].reshape(-1, self._size)

    def _block_sizes(self, pools: np.ndarray) -> np.ndarray:
        """(n,) how many pairs of its pool stay together with each: a unit, fewer, or 1."""
        order = np.argsort(pools, kind="stable").astype(np.int32)
        counts = np.bincount(pools)
        rank: np.ndarray = np.empty_like(order)  # within its pool
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        rest = counts % self._size
        left = np.maximum(rest, 1) if self._together else np.ones_like(counts)
        sizes = np.where(rank < (counts - rest)[pools], self._size, left[pools])
        sizes[pools == 0] = 1
        return sizes


def pack_blocks(blocks: Sequence[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """As few units of at most `size` as hold all blocks, which come the larger ones first.

    A block goes where it leaves least room; it is cut where no unit has room for all of it.
    """
    most = -(-sum(map(len, blocks)) // size)
    units: list[list[np.ndarray]] = []
    rooms: list[list[int]] = [[] for _ in range(size + 1)]  # the units that have so much
    for block in blocks:
        while len(block):
            fitting = (room for room in range(len(block), size) if rooms[room])
            if (room := next(fitting, 0)) == 0 and len(units) < most:
                room = size
                rooms[room].append(len(units))
                units.append([])
            elif room == 0:
                room = max(room for room in range(size) if rooms[room])
            unit = rooms[room].pop()
            part, block = block[:room], block[room:]
            units[unit].append(part)
            rooms[room - len(part)].append(unit)
    return units


def _number(groups: np.ndarray) -> np.ndarray:
    """(N,) int32: the groups numbered from 1 on, 0 for none."""
    numbers = np.zeros(len(groups), dtype=np.int32)
    members = np.flatnonzero(groups >= 0)
    if len(members):
        numbers[members] = np.unique(groups[members], return_inverse=True)[1] + 1
    return numbers
