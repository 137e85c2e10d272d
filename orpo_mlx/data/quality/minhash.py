"""Near-duplicates among many texts: MinHash by rensa finds candidates, exact Jaccard confirms."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.extras import import_extra

PERMUTATIONS = 256
RECALL = 0.99  # probability that two texts at the threshold itself are candidates
BLOCK = 500  # texts whose shingles are held at once
DEVIATIONS = 4  # by which an estimate may lie under the threshold and still be looked at


class Match(NamedTuple):
    """Two texts by their numbers, the earlier one second, and their Jaccard similarity."""

    later: int
    earlier: int
    similarity: float


class Groups:
    """Numbers joined into groups."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """The number that represents the group of `number`."""
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def join(self, a: int, b: int) -> None:
        self._parent[self.find(a)] = self.find(b)


def near_matches(
    count: int,
    shingles: Callable[[int], Sequence[str]],
    threshold: float,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Match]:
    """Matches that connect all of `count` texts that are alike; those without shingles have none.

    A text that is alike to several of one group is matched with one of them.
    """
    minhash = import_extra("rensa", "check")
    bands, rows = banding(threshold)
    index = minhash.RMinHashLSH(threshold=threshold, num_perm=bands * rows, num_bands=bands)
    signatures = np.zeros((count, bands * rows), np.uint8)
    groups, matches = Groups(count), []
    of_earlier = lru_cache(maxsize=4 * BLOCK)(lambda number: frozenset(shingles(number)))
    for numbers, sets in _blocks(count, shingles):
        made = minhash.RMinHash.from_token_sets(sets, bands * rows, 0)
        for number, own, hashed in zip(numbers, sets, made, strict=True):
            if not own:
                continue
            signatures[number] = _signature(hashed)
            for earlier in _likely(index.query(hashed), signatures, number, threshold):
                if groups.find(earlier) == groups.find(number):
                    continue
                similarity = jaccard(frozenset(own), of_earlier(earlier))
                if similarity >= threshold:
                    groups.join(number, earlier)
                    matches.append(Match(number, earlier, similarity))
            index.insert(number, hashed)
        progress(numbers[-1] + 1)
    return matches


def _signature(hashed: Any) -> np.ndarray:
    """The last byte of each hash, (bands * rows,): enough to see how many are equal."""
    return np.array(hashed.digest(), np.uint32).astype(np.uint8)


def _likely(
    candidates: Sequence[int],
    signatures: np.ndarray,  # (texts, bands * rows) uint8
    number: int,
    threshold: float,
) -> list[int]:
    """The candidates whose estimated similarity comes near the threshold, in order.

    Texts that were filled from one template share much, and are candidates by the thousand.
    """
    if not candidates:
        return []
    ordered = np.sort(np.array(candidates))
    estimates = (signatures[ordered] == signatures[number]).mean(axis=1)
    error = math.sqrt(threshold * (1 - threshold) / signatures.shape[1])
    return [int(n) for n in ordered[estimates >= threshold - DEVIATIONS * error]]


def _blocks(
    count: int, shingles: Callable[[int], Sequence[str]]
) -> Iterator[tuple[range, list[Sequence[str]]]]:
    for start in range(0, count, BLOCK):
        numbers = range(start, min(start + BLOCK, count))
        yield numbers, [shingles(number) for number in numbers]


def banding(threshold: float) -> tuple[int, int]:
    """Bands and rows a band: the fewest candidates that still find the threshold itself."""
    for rows in (8, 4, 3, 2, 1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of what either holds that both hold."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0
