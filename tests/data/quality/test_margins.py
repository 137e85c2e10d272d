import pytest

from orpo_mlx.data.quality.by_model import BaseLogps, find_margins
from orpo_mlx.data.quality.thresholds import build_thresholds
from tests.data.quality.rows import named, pair, rows

DATA = rows(*(pair(f"prompt {i}") for i in range(4)))
LOGPS = [BaseLogps(-1.0, -2.5), BaseLogps(-3.0, -1.0), BaseLogps(-2.0, -2.25), None]


def test_pairs_far_right_and_far_wrong_are_named() -> None:
    findings = find_margins(DATA, LOGPS, build_thresholds())
    assert (named(findings, "easy"), named(findings, "noise")) == (["a.jsonl:1"], ["a.jsonl:2"])
    strict = find_margins(DATA, LOGPS, build_thresholds({"easy": 2, "noise": 3}))
    assert (named(strict, "easy"), named(strict, "noise")) == ([], [])


def test_the_means_are_those_of_the_judged_pairs() -> None:
    base = next(f for f in find_margins(DATA, LOGPS, build_thresholds()) if f.name == "base")
    assert base.total == 3
    assert base.figures["logps/chosen"] == pytest.approx(-2.0)
    assert base.figures["logps/rejected"] == pytest.approx(-5.75 / 3)
    assert base.figures["right"] == pytest.approx(2 / 3)
    assert base.figures["margin"] == pytest.approx((1.5 - 2.0 + 0.25) / 3)


def test_without_judged_pairs_nothing_is_reported() -> None:
    assert find_margins(DATA, [None] * 4, build_thresholds()) == []
