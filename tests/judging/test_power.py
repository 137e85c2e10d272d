"""Tests of judged shares, against enumeration in exact fractions."""

import re
from fractions import Fraction
from math import comb, sqrt

import pytest

from orpo_mlx.judging.power import (
    POWER,
    p_value,
    power_of,
    power_sentence,
    prompts_needed,
    share_shown,
    what_is_shown,
    wilson,
)

LEVEL = Fraction(5, 100)


def exact_p_value(wins: int, decided: int) -> Fraction:
    """How often a fair coin gives something as unlikely as this, or less likely."""
    likely = comb(decided, wins)
    as_unlikely = (comb(decided, k) for k in range(decided + 1) if comb(decided, k) <= likely)
    return Fraction(sum(as_unlikely), 2**decided)


def exact_power(decided: int, share: Fraction) -> Fraction:
    """The probability, at that share, of all outcomes that the test calls a difference."""
    significant = (k for k in range(decided + 1) if exact_p_value(k, decided) <= LEVEL)
    return sum(
        (comb(decided, k) * share**k * (1 - share) ** (decided - k) for k in significant),
        Fraction(),
    )


@pytest.mark.parametrize("decided", [0, 1, 5, 6, 7, 12, 44, 61])
def test_power_is_the_sum_over_the_outcomes_that_the_test_calls_a_difference(decided: int) -> None:
    for share in (Fraction(1, 2), Fraction(6, 10), Fraction(71, 100), Fraction(1)):
        expected = float(exact_power(decided, share))
        # float64 tails of scipy, relative; 0 and 1 are exact
        assert power_of(decided, float(share)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decided", [6, 20, 44, 60])
def test_the_share_that_is_shown_is_the_smallest_one(decided: int) -> None:
    share = share_shown(decided)
    assert share is not None
    just_below = Fraction(share) - Fraction(1, 10**6)
    assert exact_power(decided, just_below) < POWER <= exact_power(decided, Fraction(share)) + 1e-9


@pytest.mark.parametrize("decided", range(6))
def test_five_decided_prompts_show_nothing_whatever_the_share(decided: int) -> None:
    assert exact_power(decided, Fraction(1)) == 0
    assert share_shown(decided) is None


def test_60_to_40_needs_199_decided_prompts() -> None:
    needed = prompts_needed()
    assert needed == 199
    assert exact_power(needed, Fraction(6, 10)) >= POWER
    # the power goes up and down with the critical number: the odd ones just below are the peaks
    assert all(exact_power(n, Fraction(6, 10)) < POWER for n in range(needed - 9, needed))


@pytest.mark.parametrize("decided", [*range(6, 60), 80, 100, 150, 200, 400])
def test_the_ratio_of_the_sentence_has_a_power_within_two_points(decided: int) -> None:
    ratio = re.search(r"show ([\d.]+):([\d.]+) in four", what_is_shown(decided))
    assert ratio
    share, other = Fraction(ratio[1]), Fraction(ratio[2])
    assert share + other == 100
    assert abs(exact_power(decided, share / 100) - Fraction(8, 10)) <= Fraction(2, 100)


def test_p_values_are_those_of_every_outcome_enumerated() -> None:
    for decided in (1, 2, 9, 44):
        for wins in range(decided + 1):
            expected = float(exact_p_value(wins, decided))
            assert p_value(wins, decided) == pytest.approx(expected, rel=1e-9)
    assert p_value(0, 0) == 1


@pytest.mark.parametrize(("wins", "decided"), [(0, 3), (31, 44), (24, 44), (60, 60)])
def test_the_interval_is_wilsons(wins: int, decided: int) -> None:
    z, share = 1.959963984540054, wins / decided
    center = (share + z * z / (2 * decided)) / (1 + z * z / decided)
    half = z / (1 + z * z / decided)
    half *= sqrt(share * (1 - share) / decided + z * z / (4 * decided**2))
    assert wilson(wins, decided) == pytest.approx((center - half, center + half), abs=1e-12)


def test_nothing_decided_leaves_every_share_possible() -> None:
    assert wilson(0, 0) == (0, 1)


def test_the_power_is_said_before_the_start() -> None:
    assert power_sentence(60) == (
        "60 prompts, if all are decided, would show a preference of 69:31 in four tries of five; "
        "60:40 needs about 200."
    )
    assert power_sentence(5) == (
        "Fewer than 6 decided prompts cannot show any difference, and there are 5; 60:40 needs "
        "about 200."
    )
    assert power_sentence(1).endswith("and there is 1; 60:40 needs about 200.")
