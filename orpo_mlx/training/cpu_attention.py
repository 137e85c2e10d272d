"""Attention of the CPU's training pass: MLX's own, except for the exp of its softmax."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx

from orpo_mlx import backend
from orpo_mlx.model.mlx_lm_api import attention_replaced
from orpo_mlx.objective.logps import exp


@contextmanager
def cheap_softmax() -> Iterator[None]:
    """On the CPU, attention without MLX's exp while the block holds; elsewhere nothing."""
    if not backend.is_cpu():
        yield
        return
    with attention_replaced(lambda attention: partial(_attention, attention)):
        yield


def _attention(
    attention: Any,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **other: Any,
) -> mx.array:
    """q (N, H, T, D), k and v (N, G, K, D), H a multiple of G; mask broadcasts to (N, H, T, K).

    Half precision, whose softmax MLX sums in float32, and sinks are left to MLX.
    """
    if q.dtype != mx.float32 or sinks is not None:
        return attention(q, k, v, scale=scale, mask=mask, sinks=sinks, **other)
    (count, heads, rows, width), (groups, keys) = q.shape, k.shape[1:3]
    q = (q * scale).reshape(count, groups, -1, rows, width)
    scores = q @ k[:, :, None].swapaxes(-1, -2)  # (N, G, H / G, T, K)
    if isinstance(mask, str):
        mask = mx.arange(keys - rows, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        if mask.ndim > 2:
            mask = mx.broadcast_to(mask, (*mask.shape[:-3], heads, rows, keys))
            mask = mask.reshape(*mask.shape[:-3], groups, -1, rows, keys)
        if mask.dtype == mx.bool_:
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    weights: Any = _softmax(scores)
    return (weights @ v[:, :, None]).reshape(count, heads, rows, v.shape[-1])


@mx.custom_function
def _softmax(scores: mx.array) -> mx.array:
    """Along the last axis."""
    weights = exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@_softmax.vjp
def _softmax_gradient(scores: mx.array, cotangent: mx.array, weights: mx.array) -> mx.array:
    weighted = weights * cotangent
    return weighted - weights * weighted.sum(axis=-1, keepdims=True)
