from itertools import combinations
from random import Random

import pytest

from orpo_mlx.data.quality.minhash import banding, jaccard, near_matches


def at_jaccard(rng: Random, shared: int, own: int) -> tuple[list[str], list[str]]:
    """Two sets of words that share `shared` of shared + 2 * own."""
    words = [f"{rng.random():.12f}" for _ in range(shared + 2 * own)]
    return words[: shared + own], words[:shared] + words[shared + own :]


@pytest.mark.parametrize(("threshold", "shared", "own"), [(0.8, 80, 10), (0.5, 50, 25)])
def test_pairs_at_the_threshold_itself_are_found(threshold: float, shared: int, own: int) -> None:
    rng = Random(3)
    sets = [s for _ in range(400) for s in at_jaccard(rng, shared, own)]
    matched = {(m.earlier, m.later) for m in near_matches(len(sets), sets.__getitem__, threshold)}
    wanted = {(i, i + 1) for i in range(0, len(sets), 2)}
    assert matched <= wanted
    assert len(matched) >= 0.99 * len(wanted)


def test_matches_connect_what_is_alike_and_nothing_else() -> None:
    rng = Random(4)
    words = [f"w{i}" for i in range(400)]
    sets = [rng.sample(words[50 * (i % 8) : 50 * (i % 8) + 50], 44) for i in range(120)]
    matches = near_matches(len(sets), sets.__getitem__, 0.7)
    assert all(
        m.similarity == jaccard(frozenset(sets[m.later]), frozenset(sets[m.earlier]))
        and m.similarity >= 0.7
        for m in matches
    )
    together = lambda pairs: _components(len(sets), pairs)  # noqa: E731
    alike = [
        (a, b)
        for a, b in combinations(range(len(sets)), 2)
        if jaccard(frozenset(sets[a]), frozenset(sets[b])) >= 0.7
    ]
    assert together([(m.later, m.earlier) for m in matches]) == together(alike)


def _components(count: int, pairs: list[tuple[int, int]]) -> set[frozenset[int]]:
    groups = {i: {i} for i in range(count)}
    for a, b in pairs:
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for member in groups[b]:
                groups[member] = groups[a]
    return {frozenset(group) for group in groups.values()}


def test_texts_without_shingles_match_nothing() -> None:
    assert near_matches(4, lambda n: [], 0.8) == []


def test_bands_find_the_threshold_with_few_rows_a_band() -> None:
    assert banding(0.8) == (32, 8)
    for threshold in (0.3, 0.5, 0.9, 0.99):
        bands, rows = banding(threshold)
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
        assert bands * rows <= 256
