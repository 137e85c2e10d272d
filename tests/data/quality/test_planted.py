"""Damage that is planted is found, and rows that are clean are left alone."""

from collections import defaultdict
from random import Random

import pytest

from orpo_mlx.data.quality.check import check_pairs
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.clean import KINDS, clean_rows
from tests.data.quality.planted import PLANTS, hits_of, plant

SHARES = (0.002, 0.01, 0.05)
# The classifier says nothing about rows.
THRESHOLDS = build_thresholds({"classifier_pairs": 50})


def recalls(seed: int, each: int, shares: tuple[float, ...]) -> tuple[dict[str, list[bool]], float]:
    """Whether each damage was found, by its kind, and the share of clean rows that were named."""
    hits: dict[str, list[bool]] = defaultdict(list)
    clean = named = 0
    for share in shares:
        rng = Random(f"{seed} {share}")
        field = plant(clean_rows(rng, each), rng, share, PLANTS)
        some, wrong = hits_of(field, check_pairs(field.pairs, THRESHOLDS).findings)
        for name, each_hit in some.items():
            hits[name] += each_hit
        clean += len(field.kinds) - len(field.damaged)
        named += len(wrong)
    return hits, named / clean


@pytest.mark.parametrize("share", SHARES)
def test_planted_damage_is_found_and_clean_rows_are_not_named(share: float) -> None:
    hits, wrong = recalls(1, 80, (share,))
    assert set(hits) == set(PLANTS)
    assert {name: sum(h) / len(h) for name, h in hits.items() if sum(h) < 0.95 * len(h)} == {}
    assert wrong <= 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_clean_data_of_one_kind_shows_nothing_severe(kind: str) -> None:
    rng = Random(kind)
    rows = [row for row in clean_rows(rng, 150) if row.kind == kind]
    field = plant(rows, rng, 0, {})
    report = check_pairs(field.pairs, THRESHOLDS)
    named = {location for finding in report.findings for location in finding.rows}
    assert len(named) <= 0.01 * len(field.kinds)
    assert [f.name for f in report.severe] == []


@pytest.mark.soak
def test_twenty_seeds_at_every_share() -> None:
    hits: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for seed in range(1_000, 1_020):
        some, share = recalls(seed, 500, SHARES)
        wrong.append(share)
        for name, each_hit in some.items():
            hits[name] += each_hit
    assert {name: sum(h) / len(h) for name, h in hits.items() if sum(h) < 0.95 * len(h)} == {}
    assert max(wrong) <= 0.01
