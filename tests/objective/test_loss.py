"""The ORPO loss against the paper's formulas in float64."""

import math
from decimal import Decimal, localcontext

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.objective.loss import LARGEST_LOGP, LN_2, log1mexp, orpo_loss

BRANCH = np.float32(-LN_2)
# The branch point, the two float32 values next to it, and values that crowd it from both sides.
AT_BRANCH = np.array(
    [np.nextafter(BRANCH, np.float32(-1)), BRANCH, np.nextafter(BRANCH, np.float32(0))]
    + [BRANCH * np.float32(1 + 10.0**-k) for k in range(2, 7)]
    + [BRANCH * np.float32(1 - 10.0**-k) for k in range(2, 7)],
    dtype=np.float32,
)
RANGE = np.concatenate([-np.geomspace(60, 1e-7, 200).astype(np.float32), AT_BRANCH])
# From a hopeless response to one known by heart, every one with every other.
LOGPS = np.array([-30, -8, -2.5, -0.7, -0.69, -0.3, -1e-2, -1e-4, -1e-6], dtype=np.float32)
CHOSEN, REJECTED = (grid.ravel() for grid in np.meshgrid(LOGPS, LOGPS))


def exact_log1mexp(v: np.ndarray) -> np.ndarray:
    """ln(1 - e^v) in 60 decimal digits, then rounded to float64."""
    with localcontext() as context:
        context.prec = 60
        return np.array([float((1 - Decimal(float(x)).exp()).ln()) for x in v])


def gradient_log1mexp(v: np.ndarray) -> np.ndarray:
    return -1 / np.expm1(-v.astype(np.float64))


def paper_loss(chosen: np.ndarray, rejected: np.ndarray, beta: float) -> dict[str, np.ndarray]:
    """Eq. 4 to 7 of arXiv 2403.07691 and their derivatives, from probabilities in float64."""
    lc, lr = chosen.astype(np.float64), rejected.astype(np.float64)
    not_chosen, not_rejected = -np.expm1(lc), -np.expm1(lr)
    odds_ratio = (np.exp(lc) / not_chosen) / (np.exp(lr) / not_rejected)
    sigmoid = odds_ratio / (1 + odds_ratio)  # = sigmoid(log(odds_ratio))
    # The gradient of -log sigmoid(log OR), with sigmoid(-x) = 1 / (1 + e^x).
    slope = -1 / (1 + odds_ratio)
    return {
        "loss": -lc - beta * np.log(sigmoid),
        "nll_loss": -lc,
        "log_odds": np.log(odds_ratio),
        "odds_ratio_loss": -np.log(sigmoid),
        "chosen_gradient": -1 + beta * slope / not_chosen,
        "rejected_gradient": -beta * slope / not_rejected,
    }


def gradients(chosen: np.ndarray, rejected: np.ndarray, beta: float) -> list[np.ndarray]:
    """d loss / d chosen_logps and d loss / d rejected_logps of each pair."""
    total = mx.grad(lambda c, r: orpo_loss(c, r, beta).loss.sum(), argnums=(0, 1))
    return [np.array(g) for g in total(mx.array(chosen), mx.array(rejected))]


def test_log1mexp_is_right_from_minus_60_to_almost_0() -> None:
    got, expected = np.array(log1mexp(mx.array(RANGE))), exact_log1mexp(RANGE)
    # A few roundings of float32 (6e-8), and that of exp's argument, which counts |v| times.
    relative = np.abs(got - expected) / np.abs(expected)
    assert (relative < 4e-7 + 6e-8 * np.abs(RANGE)).all()


def test_gradient_of_log1mexp_is_right_from_minus_60_to_almost_0() -> None:
    got = np.array(mx.grad(lambda v: log1mexp(v).sum())(mx.array(RANGE)))
    # exp(-60) amplifies the rounding of its argument by 60 in relative terms: 60 * 6e-8.
    np.testing.assert_allclose(got, gradient_log1mexp(RANGE), rtol=4e-6)


@pytest.mark.parametrize("v", [-1e-9, LARGEST_LOGP, -1e-3, float(BRANCH), -20.0, -104.0, -1e4])
def test_the_branch_not_taken_makes_no_nan_gradient(v: float) -> None:
    value, gradient = mx.value_and_grad(log1mexp)(mx.array(v))
    assert math.isfinite(value.item())
    # Below -104 exp is 0 in float32, and so is the gradient. At -1e-9 it is 1, whose log1p has an
    # infinite slope. Else exp turns the rounding of its argument into up to 20 * 6e-8.
    assert gradient.item() == pytest.approx(-math.exp(v) / -math.expm1(v), rel=4e-6, abs=1e-44)


@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_loss_and_its_parts_are_the_papers(beta: float) -> None:
    losses = orpo_loss(mx.array(CHOSEN), mx.array(REJECTED), beta)
    expected = paper_loss(CHOSEN, REJECTED, beta)
    for name in ("loss", "nll_loss", "odds_ratio_loss"):
        got = np.array(getattr(losses, name))
        assert got.dtype == np.float32
        # Sums of a few float32 terms; the wish is 1e-5. The absolute part is for a loss of 1e-13
        # that is a rest of terms up to 30 (float32 at 30: 2e-6).
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-12, err_msg=name)
    # The log odds ratio of equals is a difference of terms up to 30: float32 at 30 is 2e-6.
    np.testing.assert_allclose(losses.log_odds, expected["log_odds"], rtol=1e-5, atol=4e-6)
    assert not np.array(losses.saturated).any()


@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_gradients_of_the_loss_are_the_papers(beta: float) -> None:
    chosen, rejected = gradients(CHOSEN, REJECTED, beta)
    expected = paper_loss(CHOSEN, REJECTED, beta)
    # float32's exp of a log odds ratio of up to 44 is right to 44 * 6e-8; the wish is 1e-5.
    np.testing.assert_allclose(chosen, expected["chosen_gradient"], rtol=1e-5)
    np.testing.assert_allclose(rejected, expected["rejected_gradient"], rtol=1e-5, atol=1e-30)


def test_a_pair_worked_by_hand() -> None:
    # p = 1/2 and 1/5: odds 1 and 1/4, their ratio 4, sigmoid(ln 4) = 4/5.
    losses = orpo_loss(mx.array([math.log(1 / 2)]), mx.array([math.log(1 / 5)]), 0.1)
    # One float32 rounding in each of five operations.
    assert losses.log_odds.item() == pytest.approx(math.log(4), rel=1e-6)
    assert losses.odds_ratio_loss.item() == pytest.approx(math.log(5 / 4), rel=1e-6)
    assert losses.loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(5 / 4), rel=1e-6)


@pytest.mark.parametrize("certain", [0.0, -1e-9])
@pytest.mark.parametrize("other", [-3.0, -0.2])
def test_a_certain_response_gives_no_odds_ratio_gradient_and_is_counted(
    certain: float, other: float
) -> None:
    beta = 0.5
    chosen = np.array([certain, other, certain, other], dtype=np.float32)
    rejected = np.array([other, certain, certain, other], dtype=np.float32)
    losses = orpo_loss(mx.array(chosen), mx.array(rejected), beta)
    assert all(np.isfinite(np.array(part)).all() for part in losses)
    assert np.array(losses.saturated).tolist() == [True, True, True, False]
    chosen_gradient, rejected_gradient = gradients(chosen, rejected, beta)
    # What is left for a certain chosen response is its likelihood alone, d(-lc)/dlc.
    assert chosen_gradient[[0, 2]].tolist() == [-1.0, -1.0]
    assert rejected_gradient[[1, 2]].tolist() == [0.0, 0.0]
    # The other response of the pair learns on, as if the certain one were at the bound.
    bounded = [np.minimum(a, np.float32(LARGEST_LOGP)) for a in (chosen, rejected)]
    expected = paper_loss(*bounded, beta)
    # float32's exp of a log odds ratio of up to 20 is right to 20 * 6e-8.
    np.testing.assert_allclose(
        chosen_gradient[[1, 3]], expected["chosen_gradient"][[1, 3]], rtol=5e-6
    )
    np.testing.assert_allclose(
        rejected_gradient[[0, 3]], expected["rejected_gradient"][[0, 3]], rtol=5e-6
    )


def test_the_bound_itself_is_not_saturated() -> None:
    losses = orpo_loss(mx.array([LARGEST_LOGP]), mx.array([-1.0]), 0.1)
    assert not losses.saturated.item()


def test_beta_0_is_the_plain_nll_even_where_a_response_is_certain() -> None:
    chosen = np.append(CHOSEN, np.float32(0))
    rejected = np.append(REJECTED, np.float32(0))
    losses = orpo_loss(mx.array(chosen), mx.array(rejected), 0.0)
    assert np.array_equal(np.array(losses.loss), -chosen)
    chosen_gradient, rejected_gradient = gradients(chosen, rejected, 0.0)
    assert np.array_equal(chosen_gradient, -np.ones_like(chosen))
    assert np.array_equal(rejected_gradient, np.zeros_like(rejected))


def test_a_given_nll_replaces_the_likelihood_of_the_response() -> None:
    chosen, rejected, beta = mx.array([-1.0, -2.0]), mx.array([-2.0, -0.5]), 0.3
    nll = mx.array([7.0, 0.25])
    given, own = orpo_loss(chosen, rejected, beta, nll), orpo_loss(chosen, rejected, beta)
    assert given.nll_loss.tolist() == [7.0, 0.25]
    assert given.log_odds.tolist() == own.log_odds.tolist()
    # The same float32 terms added in the same order.
    assert given.loss.tolist() == (nll + beta * own.odds_ratio_loss).tolist()
    to_nll = mx.grad(lambda n: orpo_loss(chosen, rejected, beta, n).loss.sum())(nll)
    assert to_nll.tolist() == [1.0, 1.0]


def test_beta_may_be_an_array() -> None:
    chosen, rejected = mx.array(CHOSEN), mx.array(REJECTED)
    number = orpo_loss(chosen, rejected, 0.25).loss
    assert mx.array_equal(number, orpo_loss(chosen, rejected, mx.array(0.25)).loss)


def test_half_precision_logps_are_computed_in_float32() -> None:
    chosen, rejected = mx.array(CHOSEN), mx.array(REJECTED)
    half = [a.astype(mx.bfloat16) for a in (chosen, rejected)]
    whole = [a.astype(mx.float32) for a in half]
    for got, expected in zip(orpo_loss(*half, 0.1), orpo_loss(*whole, 0.1), strict=True):
        assert got.dtype == expected.dtype
        assert mx.array_equal(got, expected)
