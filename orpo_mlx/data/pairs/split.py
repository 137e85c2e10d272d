"""Held-out pairs, by prompt: no prompt is on both sides of a split."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.pairs.load import Message, PreferencePair

BLOCK_PAIRS = 65_536  # looked at together when a mask is written
DRAWS = 2**64  # a draw is a number below this


class Split(NamedTuple):
    """Which pairs each part gets; pairs of no part are trained on."""

    masks: list[np.ndarray]  # (N,) bool for each part
    filled: list[int]  # parts that would be empty by the draws alone; training counts as the last


def prompt_hash(pair: PreferencePair) -> int:
    """64 bits of a pair's prompt messages and tools, the same in every process and version."""
    return hash_prompt(pair.messages, pair.tools)


def hash_prompt(messages: Sequence[Message], tools: Sequence[Any] | None) -> int:
    """The same of a prompt alone."""
    text = json.dumps([messages, tools or []], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def split_by_prompt(
    hashes: np.ndarray,  # (N,) uint64, of each pair's prompt
    fractions: Sequence[float],  # of the prompts, in all less than 1
    seed: int,
) -> Split:
    """The first part gets the prompts with draws in [0, f), the second [f, f + g), and so on.

    A prompt's draw follows from its hash and the seed alone, so no pair moves when others are
    added. A part into which no draw falls gets the prompt with the nearest one, where there are
    enough prompts; training goes first and is never left empty.
    """
    ends = [min(int(end * DRAWS), DRAWS - 1) for end in accumulate(fractions)]
    masks = _masks(hashes, ends, seed)
    wanted = [*(fraction > 0 for fraction in fractions), True]
    empty = [n for n in _empty(masks, len(hashes)) if wanted[n]]
    if not empty or not len(hashes):
        return Split(masks, [])
    keys, last = _sorted_draws(hashes, seed)
    masks = _masks(hashes, _move_ends(keys[last], ends, wanted), seed)
    still_empty = _empty(masks, len(hashes))
    return Split(masks, [n for n in empty if n not in still_empty])


def _masks(hashes: np.ndarray, ends: Sequence[int], seed: int) -> list[np.ndarray]:
    """For each part, where the draws lie between the end of the part before and its own."""
    masks = [np.empty(len(hashes), bool) for _ in ends]
    for block in _blocks(len(hashes)):
        parts = np.searchsorted(np.array(ends, np.uint64), _draws(hashes[block], seed), "right")
        for part, mask in enumerate(masks):
            mask[block] = parts == part
    return masks


def _empty(masks: Sequence[np.ndarray], pairs: int) -> list[int]:
    """The parts without a pair; the training part is numbered after the others."""
    counts = [int(mask.sum()) for mask in masks]
    return [n for n, count in enumerate([*counts, pairs - sum(counts)]) if not count]


def _move_ends(draws: np.ndarray, ends: Sequence[int], wanted: Sequence[bool]) -> list[int]:
    """The ends moved past as few draws, all different and sorted, as give each part one."""
    moved, before = [], 0
    for part, end in enumerate(ends):
        below = int(np.searchsorted(draws, np.uint64(end)))
        before = min(max(below, before + wanted[part]), len(draws) - sum(wanted[part + 1 :]))
        before = max(before, 0)
        moved.append(int(draws[before]))
    return moved


def held_out_by_rule_1(
    hashes: np.ndarray,  # (N,) uint64, of each pair's prompt
    fraction: float,
    seed: int,
) -> np.ndarray:  # (N,) bool, True where a pair is held out
    """The pairs that runs of version 0.1 held out; used to resume and to measure those.

    As near to `fraction` of the pairs as complete prompts allow, in the order of their draws: which
    ones depends on how many pairs there are.
    """
    held = np.zeros(len(hashes), bool)
    keys, ends = _sorted_draws(hashes, seed)
    if fraction == 0 or len(ends) < 2:
        return held
    target = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
    sizes = np.empty_like(ends)
    sizes[0] = ends[0] + 1
    np.subtract(ends[1:], ends[:-1], out=sizes[1:])
    chosen = keys[ends[_draw(sizes, target)]]
    for block in _blocks(len(hashes)):
        drawn = _draws(hashes[block], seed)
        held[block] = chosen[np.searchsorted(chosen, drawn).clip(max=len(chosen) - 1)] == drawn
    return held


def _blocks(count: int) -> list[slice]:
    """Cut so that what is made of a block on the way takes little memory."""
    return [slice(first, first + BLOCK_PAIRS) for first in range(0, count, BLOCK_PAIRS)]


def _sorted_draws(hashes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The draws of all pairs, (N,) and sorted, and where the last of each prompt is, (U,)."""
    keys = np.empty_like(hashes)
    for block in _blocks(len(hashes)):
        keys[block] = _draws(hashes[block], seed)
    keys.sort()
    return keys, _ends_of_runs(keys)


def _ends_of_runs(keys: np.ndarray) -> np.ndarray:  # (U,) uint32
    """Where the last of each run of equal keys is."""
    after = (keys[1 + b.start : 1 + b.stop] for b in _blocks(len(keys)))
    differs = [keys[b][: len(a)] != a for b, a in zip(_blocks(len(keys)), after, strict=True)]
    return np.flatnonzero(np.concatenate([*differs, np.ones(min(len(keys), 1), bool)])).astype(
        np.uint32
    )


def _draws(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Another 64-bit number for each, one to one: their order is a draw (splitmix64)."""
    keys = hashes ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return keys


def _draw(sizes: np.ndarray, target: int) -> np.ndarray:
    """Indices, in order, of prompts whose sizes add up as near to `target` as any can.

    The first that fit, one after another; where they miss the target, of each size as many as
    that total allows.
    """
    first = int(np.searchsorted(np.cumsum(sizes[:target]), target, side="right"))
    parts, left = [np.arange(first)], target - int(sizes[:first].sum())
    while left and (fits := sizes[first:] <= left).any():
        first += int(fits.argmax())
        parts.append(np.array([first]))
        left -= int(sizes[first])
        first += 1
    indices = np.concatenate(parts)
    return indices if not left else _exactly(sizes, indices, target)


def _exactly(sizes: np.ndarray, near: np.ndarray, target: int) -> np.ndarray:
    """Like `_draw`, by all totals that there are: bit T of a number says that T can be made."""
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
    parts = []
    for size, count, rest in zip(kinds, counts, reachable[-2::-1], strict=True):
        usual = int((sizes[near] == size).sum())
        wanted = min(
            (n for n in range(min(count, total // size) + 1) if rest >> (total - n * size) & 1),
            key=lambda n: abs(n - usual),
        )
        parts.append(np.flatnonzero(sizes == size)[:wanted])
        total -= wanted * size
    return np.sort(np.concatenate(parts))


def _with_multiples(reachable: int, size: int, count: int) -> int:
    """Totals that up to `count` more prompts of a size make."""
    step = 1
    while count:
        take = min(step, count)
        reachable |= reachable << (take * size)
        count -= take
        step *= 2
    return reachable
