"""Log-probs of targets against float64 log-softmax."""

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.objective.logps import sum_by_row, token_logps

POSITIONS, VOCABULARY = 40, 97


def random_logits(scale: float, seed: int = 0) -> mx.array:
    """Logits (POSITIONS, VOCABULARY) with another offset in each row."""
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal((POSITIONS, VOCABULARY))
    return mx.array((logits + 50 * random.standard_normal((POSITIONS, 1))).astype(np.float32))


def random_targets(seed: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, VOCABULARY, POSITIONS))


def log_softmax(logits: mx.array) -> np.ndarray:
    """In float64, from the very values that the array holds."""
    exact = np.array(logits.astype(mx.float32), dtype=np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_logps_are_the_log_softmax_at_the_targets(dtype: mx.Dtype, scale: float) -> None:
    logits, targets = random_logits(scale).astype(dtype), random_targets()
    got = token_logps(logits, targets)
    assert got.dtype == mx.float32
    expected = log_softmax(logits)[np.arange(POSITIONS), np.array(targets)]
    # Differences of float32 logits of up to 250, where a float32 has a spacing of 1.5e-5. For
    # bfloat16 the same bound holds because the cast comes before the sum.
    np.testing.assert_allclose(got, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("vocabulary", [49152, 50257, 151936])
def test_an_almost_certain_token_keeps_its_log_prob_in_a_real_vocabulary(vocabulary: int) -> None:
    # One token at 16 or 20 over a flat tail: p = 0.98 to 0.9999. Added up one after the other in
    # float32, each of the tail's terms is lost beside the 1 of the top token.
    random = np.random.default_rng(0)
    logits = mx.array(random.standard_normal((8, vocabulary)).astype(np.float32))
    logits[:, 100] = mx.array([16.0, 20.0] * 4)
    logits = logits.astype(mx.bfloat16)
    got = token_logps(logits, mx.full(8, 100))
    # float32 has a spacing of 2e-6 at the logits' 16 to 20.
    np.testing.assert_allclose(got, log_softmax(logits)[:, 100], atol=6e-6, rtol=0)


def test_the_tail_of_a_real_vocabulary_has_its_gradient() -> None:
    random = np.random.default_rng(0)
    logits = mx.array(random.standard_normal((4, 50257)).astype(np.float32))
    logits[:, 100] = 16.0
    total = mx.grad(lambda values: token_logps(values, mx.full(4, 100)).sum())
    got, expected = np.array(total(logits)), -np.exp(log_softmax(logits))
    # exp turns the spacing of the log of the sum, 2e-6 at 16, into a relative error.
    np.testing.assert_allclose(np.delete(got, 100, 1), np.delete(expected, 100, 1), rtol=1e-5)
    # The same error of p, beside which 1 - p is small.
    np.testing.assert_allclose(got[:, 100], 1 + expected[:, 100], atol=4e-6, rtol=0)


def test_gradient_is_one_hot_minus_softmax() -> None:
    logits, targets = random_logits(3.0), random_targets()
    weights = mx.array(np.random.default_rng(2).standard_normal(POSITIONS).astype(np.float32))
    got = mx.grad(lambda values: (weights * token_logps(values, targets)).sum())(logits)
    one_hot = np.eye(VOCABULARY)[np.array(targets)]
    expected = np.array(weights)[:, None] * (one_hot - np.exp(log_softmax(logits)))
    # The softmax of float32 logits of up to 150, whose spacing is 1.5e-5.
    np.testing.assert_allclose(got, expected, atol=3e-5, rtol=0)


def test_rows_are_summed_in_any_order_and_an_empty_row_is_0() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0], dtype=np.float32)
    rows = mx.array([3, 0, 3, 1, 0])
    assert sum_by_row(mx.array(values), rows, 5).tolist() == [18.0, 8.0, 0.0, 5.0, 0.0]


def test_gradient_of_a_row_goes_to_its_own_values() -> None:
    weights, rows = mx.array([1.0, 10.0, 100.0]), mx.array([2, 0, 2, 1])
    got = mx.grad(lambda values: (weights * sum_by_row(values, rows, 3)).sum())(mx.zeros(4))
    assert got.tolist() == [100.0, 1.0, 100.0, 10.0]
