"""Attention with the cheap softmax: MLX's values and gradients, and a float64 reference."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.training.cpu_attention import cheap_softmax

pytestmark = pytest.mark.touchy

ROWS, HEADS, GROUPS, QUERIES, KEYS, WIDTH, SCALE = 2, 6, 2, 5, 9, 8, 0.3
# Float32 sums of 9 terms; rounding of the exponent.
TOLERANCE = 1e-6


def drawn(*shape: int, seed: int) -> mx.array:
    return 3 * mx.random.normal(shape, key=mx.random.key(seed))


Q, K, V = (
    drawn(ROWS, heads, length, WIDTH, seed=seed)
    for seed, (heads, length) in enumerate([(HEADS, QUERIES), (GROUPS, KEYS), (GROUPS, KEYS)])
)
CAUSAL = np.arange(KEYS - QUERIES, KEYS)[:, None] >= np.arange(KEYS)
RANDOM = np.random.default_rng(0)
MASKS: dict[str, Any] = {
    "none": None,
    "causal": "causal",
    "bool": mx.array(CAUSAL),
    "bool of each row": mx.array(RANDOM.random((ROWS, 1, QUERIES, KEYS)) < 0.6),
    "bool of each head": mx.array(RANDOM.random((ROWS, HEADS, QUERIES, KEYS)) < 0.6),
    "added": drawn(QUERIES, KEYS, seed=7),
    "added to each head": drawn(ROWS, HEADS, QUERIES, KEYS, seed=8),
    "nothing is seen": mx.array(CAUSAL & (np.arange(QUERIES) > 0)[:, None]),
}


def attention(q: mx.array, k: mx.array, v: mx.array, mask: Any, **other: Any) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask=mask, **other)


def reference(mask: Any) -> np.ndarray:
    """softmax(scale q k^T + mask) v in float64; a row that sees nothing weighs all alike."""
    q, k, v = (np.array(a, dtype=np.float64) for a in (Q, K, V))
    k, v = (a.repeat(HEADS // GROUPS, axis=1) for a in (k, v))
    scores = SCALE * q @ k.swapaxes(-1, -2)
    if mask is not None:
        mask = CAUSAL if isinstance(mask, str) else np.array(mask)
        scores = np.where(mask, scores, -1e30) if mask.dtype == bool else scores + mask
    scores[(scores == -1e30).all(-1)] = 0
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("name", MASKS)
def test_it_is_attention(name: str) -> None:
    with cheap_softmax():
        result = attention(Q, K, V, MASKS[name])
    np.testing.assert_allclose(result, reference(MASKS[name]), rtol=TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.parametrize("name", MASKS)
def test_its_gradients_are_those_of_mlx(name: str) -> None:
    mask, given = MASKS[name], [Q, K, V]
    added = mask is not None and not isinstance(mask, str) and mask.dtype == mx.float32
    given += [mask] if added else []

    def loss(*arrays: mx.array) -> mx.array:
        q, k, v, *rest = arrays
        return (attention(q, k, v, rest[0] if rest else mask) ** 3).sum()

    numbers = tuple(range(len(given)))
    wanted = mx.grad(loss, argnums=numbers)(*given)
    with cheap_softmax():
        result = mx.grad(loss, argnums=numbers)(*given)
        mx.eval(result)
    for ours, theirs in zip(result, wanted, strict=True):
        off = mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)
        assert off.item() < 5 * TOLERANCE


def test_half_precision_and_sinks_are_left_to_mlx_and_it_is_put_back() -> None:
    own = mx.fast.scaled_dot_product_attention
    halves, sinks = [a.astype(mx.float16) for a in (Q, K, V)], drawn(HEADS, seed=9)
    wanted = attention(*halves, "causal"), attention(Q, K, V, None, sinks=sinks)
    with pytest.raises(ZeroDivisionError), cheap_softmax():
        assert mx.fast.scaled_dot_product_attention is not own
        assert mx.array_equal(attention(*halves, "causal"), wanted[0])
        assert mx.array_equal(attention(Q, K, V, None, sinks=sinks), wanted[1])
        raise ZeroDivisionError
    assert mx.fast.scaled_dot_product_attention is own
