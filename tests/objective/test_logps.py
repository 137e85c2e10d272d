"""Log-probs of targets and their gradients, from logits, against float64 arithmetic."""

import math

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.objective.logps import BLOCK, token_logps
from tests.objective.arrays import POSITIONS, VOCABULARY, exact, random_targets


def random_logits(scale: float, seed: int = 0) -> mx.array:
    """Logits (POSITIONS, VOCABULARY) with another offset in each row."""
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal((POSITIONS, VOCABULARY))
    return mx.array((logits + 50 * random.standard_normal((POSITIONS, 1))).astype(np.float32))


def log_softmax(logits: mx.array) -> np.ndarray:
    values = exact(logits)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def gradient_of(logits: mx.array, targets: mx.array) -> np.ndarray:
    return np.array(mx.grad(lambda values: token_logps(values, targets).sum())(logits))


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


@pytest.mark.parametrize("vocabulary", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_a_vocabulary_need_be_no_multiple_of_a_block(vocabulary: int) -> None:
    random = np.random.default_rng(0)
    logits = mx.array(random.standard_normal((POSITIONS, vocabulary)).astype(np.float32))
    targets = random_targets(vocabulary=vocabulary)
    targets[:2] = mx.array([0, vocabulary - 1])
    rows, where = np.arange(POSITIONS), np.array(targets)
    np.testing.assert_allclose(
        token_logps(logits, targets), log_softmax(logits)[rows, where], atol=2e-6, rtol=0
    )
    expected = -np.exp(log_softmax(logits))
    expected[rows, where] += 1
    np.testing.assert_allclose(gradient_of(logits, targets), expected, atol=5e-7, rtol=0)


# 1 - p of one token over a flat tail; at the last, p is 1 in float32.
DOUBTS = [0.5, 1e-2, 1e-4, 1e-6, 1e-8]


@pytest.mark.parametrize("vocabulary", [1000, 49152, 50257, 151936])
def test_an_almost_certain_token_keeps_log_prob_and_gradient_to_their_last_digits(
    vocabulary: int,
) -> None:
    # Added up one after the other in float32, each of the tail's terms is lost next to the 1 of the
    # top token; and 1 - p taken from a p that is rounded has no digits left.
    random = np.random.default_rng(0)
    tail = random.standard_normal((len(DOUBTS), vocabulary))
    top = [math.log(vocabulary * math.exp(0.5) * (1 - d) / d) for d in DOUBTS]
    tail[:, 100] = top
    logits, where = mx.array(tail.astype(np.float32)), np.full(len(DOUBTS), 100)
    targets, rows = mx.array(where), np.arange(len(DOUBTS))

    values = exact(logits)
    weights = np.exp(values - values[rows, where][:, None])
    weights[rows, where] = 0.0
    rest = weights.sum(axis=-1)  # of the others, the target's being 1
    np.testing.assert_allclose(rest / (1 + rest), DOUBTS, rtol=0.1)
    # An exponent of up to 35 is rounded to 2e-6, which is a relative error of its exp.
    close = {"rtol": 4e-6, "atol": 0}
    np.testing.assert_allclose(token_logps(logits, targets), -np.log1p(rest), **close)
    got = gradient_of(logits, targets)
    np.testing.assert_allclose(got[rows, where], rest / (1 + rest), **close)
    expected = -weights / (1 + rest[:, None])
    np.testing.assert_allclose(np.delete(got, 100, 1), np.delete(expected, 100, 1), **close)


def test_an_almost_certain_token_has_a_log_prob_in_bfloat16_too() -> None:
    random = np.random.default_rng(0)
    logits = mx.array(random.standard_normal((8, 50257)).astype(np.float32))
    logits[:, 100] = mx.array([16.0, 20.0] * 4)
    logits = logits.astype(mx.bfloat16)
    expected = log_softmax(logits)[:, 100]
    np.testing.assert_allclose(token_logps(logits, mx.full(8, 100)), expected, rtol=4e-6)


def test_gradient_is_one_hot_minus_softmax() -> None:
    logits, targets = random_logits(3.0), random_targets()
    weights = mx.array(np.random.default_rng(2).standard_normal(POSITIONS).astype(np.float32))
    got = mx.grad(lambda values: (weights * token_logps(values, targets)).sum())(logits)
    one_hot = np.eye(VOCABULARY)[np.array(targets)]
    expected = np.array(weights)[:, None] * (one_hot - np.exp(log_softmax(logits)))
    # The softmax of float32 logits of up to 150, whose spacing is 1.5e-5.
    np.testing.assert_allclose(got, expected, atol=3e-5, rtol=0)


def test_tokens_that_cannot_be_have_neither_weight_nor_gradient() -> None:
    logits = np.array(random_logits(3.0))
    logits = np.pad(logits, ((0, 0), (0, 2 * BLOCK)), constant_values=-np.inf)  # whole blocks
    logits[:, :10] = -np.inf
    logits[0] = -np.inf
    logits[0, 50] = 1.0  # nothing else can be
    targets = np.random.default_rng(1).integers(10, VOCABULARY, POSITIONS)
    targets[0], targets[1] = 50, 3  # and one that cannot be
    got = np.array(token_logps(mx.array(logits), mx.array(targets)))
    values = logits[2:, 10:VOCABULARY].astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(
        got[2:], values[np.arange(POSITIONS - 2), targets[2:] - 10], atol=3e-5, rtol=0
    )
    assert (got[0], got[1]) == (0.0, -np.inf)
    gradient = gradient_of(mx.array(logits), mx.array(targets))
    assert np.isfinite(gradient).all()
    assert not gradient[0].any()
    possible = np.isfinite(logits) | (np.arange(logits.shape[1]) == targets[:, None])
    assert not gradient[~possible].any()
