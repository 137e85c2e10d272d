"""Held-out pairs, whole prompts at a time: no prompt stands on both sides of a split."""

import json
from hashlib import blake2b

import numpy as np

from orpo_mlx.data.pairs.load import PreferencePair

BLOCK_PAIRS = 65_536  # looked at together when the mask is written


def prompt_hash(pair: PreferencePair) -> int:
    """64 bits of a pair's prompt messages and tools, the same in every process and version."""
    said = json.dumps([pair.messages, pair.tools or []], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(blake2b(said.encode(), digest_size=8).digest(), "little")


def split_by_prompt(
    hashes: np.ndarray,  # (N,) uint64, of each pair's prompt
    fraction: float,
    seed: int,
) -> np.ndarray:  # (N,) bool, True where a pair is held out
    """As near to `fraction` of the pairs as whole prompts allow, drawn by prompt and seed alone.

    Where there are two prompts, both sides get at least one pair. The order of the pairs changes
    nothing.
    """
    held = np.zeros(len(hashes), bool)
    keys = np.empty_like(hashes)
    for block in _blocks(len(hashes)):
        keys[block] = _drawn(hashes[block], seed)
    keys.sort()
    ends = _ends_of_runs(keys)
    if fraction == 0 or len(ends) < 2:
        return held
    target = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
    sizes = np.empty_like(ends)
    sizes[0] = ends[0] + 1
    np.subtract(ends[1:], ends[:-1], out=sizes[1:])
    chosen = keys[ends[_taken(sizes, target)]]
    for block in _blocks(len(hashes)):
        drawn = _drawn(hashes[block], seed)
        held[block] = chosen[np.searchsorted(chosen, drawn).clip(max=len(chosen) - 1)] == drawn
    return held


def _blocks(count: int) -> list[slice]:
    """Cut so that what is made of a block on the way takes little memory."""
    return [slice(first, first + BLOCK_PAIRS) for first in range(0, count, BLOCK_PAIRS)]


def _ends_of_runs(keys: np.ndarray) -> np.ndarray:  # (U,) uint32
    """Where the last of each run of equal keys stands."""
    after = (keys[1 + b.start : 1 + b.stop] for b in _blocks(len(keys)))
    differs = [keys[b][: len(a)] != a for b, a in zip(_blocks(len(keys)), after, strict=True)]
    return np.flatnonzero(np.concatenate([*differs, np.ones(min(len(keys), 1), bool)])).astype(
        np.uint32
    )


def _drawn(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Another 64-bit number for each, one to one: their order is a draw (splitmix64)."""
    keys = hashes ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return keys


def _taken(sizes: np.ndarray, target: int) -> np.ndarray:
    """Indices, in order, of prompts whose sizes add up as near to `target` as any can.

    The first that fit, one after another; where they miss the target, of each size as many as
    that total allows.
    """
    first = int(np.searchsorted(np.cumsum(sizes[:target]), target, side="right"))
    taken, left = [np.arange(first)], target - int(sizes[:first].sum())
    while left and (fits := sizes[first:] <= left).any():
        first += int(fits.argmax())
        taken.append(np.array([first]))
        left -= int(sizes[first])
        first += 1
    indices = np.concatenate(taken)
    return indices if not left else _exactly(sizes, indices, target)


def _exactly(sizes: np.ndarray, near: np.ndarray, target: int) -> np.ndarray:
    """Like `_taken`, by all totals that there are: bit T of a number says that T can be made."""
    kinds, counts = (part.tolist() for part in np.unique(sizes, return_counts=True))
    reachable = [1]
    for size, count in zip(kinds[::-1], counts[::-1], strict=True):
        reachable.append(_with_multiples(reachable[-1], size, count))
    last = int(sizes.sum()) - 1
    total = next(
        t
        for away in range(last + 1)
        for t in (target - away, target + away)
        if 1 <= t <= last and reachable[-1] >> t & 1
    )
    taken = []
    for size, count, rest in zip(kinds, counts, reachable[-2::-1], strict=True):
        usual = int((sizes[near] == size).sum())
        wanted = min(
            (n for n in range(min(count, total // size) + 1) if rest >> (total - n * size) & 1),
            key=lambda n: abs(n - usual),
        )
        taken.append(np.flatnonzero(sizes == size)[:wanted])
        total -= wanted * size
    return np.sort(np.concatenate(taken))


def _with_multiples(reachable: int, size: int, count: int) -> int:
    """Totals that up to `count` more prompts of a size make."""
    step = 1
    while count:
        take = min(step, count)
        reachable |= reachable << (take * size)
        count -= take
        step *= 2
    return reachable
