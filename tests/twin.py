"""A model's computation in float64, the judge of what float32 makes of it.

MLX's CPU backend has float64 arrays, but some of its operations compute in float32 all the same,
or not at all; here are these by others that are exact to 1e-14. Parameters and tables (of rope's
frequencies, say) keep their float32 values.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

# What float32 may be off by: so many times what the plain path is off by, within these bounds.
MULTIPLE, FLOOR, CAP = 4, 2e-6, 1e-4
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


def allowed_error(plain: float) -> float:
    """For another order of the same sums, where the plain one is `plain` off the twin."""
    return min(max(MULTIPLE * plain, FLOOR), CAP)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The model's parameters, and what is computed of them, while the block holds."""
    before = model.parameters()
    with pytest.MonkeyPatch.context() as patch, mx.stream(mx.cpu):
        for name, function in EXACT.items():
            patch.setattr(mx, name, function)
        for name, function in EXACT_FAST.items():
            patch.setattr(mx.fast, name, function)
        # What models cast to or allocate as float32 stays in float64.
        patch.setattr(mx, "float32", mx.float64)
        mx.disable_compile()
        try:
            model.update(tree_map(_doubled, before))
            yield
        finally:
            mx.enable_compile()
            model.update(before)


def _doubled(value: mx.array) -> mx.array:
    return value.astype(mx.float64) if mx.issubdtype(value.dtype, mx.floating) else value


def exp(x: mx.array) -> mx.array:
    return mx.power(math.e, x)


def sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + exp(-x))


def logaddexp(a: mx.array, b: mx.array) -> mx.array:
    return mx.maximum(a, b) + mx.log1p(exp(-mx.abs(a - b)))


def logsumexp(x: mx.array, axis: int, keepdims: bool = False) -> mx.array:
    largest = mx.stop_gradient(x.max(axis=axis, keepdims=True))
    total = mx.log(exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return total if keepdims else total.squeeze(axis)


def softmax(x: mx.array, axis: int, precise: bool = False) -> mx.array:
    weights = exp(x - mx.stop_gradient(x.max(axis=axis, keepdims=True)))
    return weights / weights.sum(axis=axis, keepdims=True)


def erf(x: mx.array) -> mx.array:
    """The integral of its derivative from 0 to x, by Gauss and Legendre."""
    nodes, weights = (mx.array(a, dtype=mx.float64) for a in ((NODES + 1) / 2, WEIGHTS / 2))
    inner = exp(-mx.square(x[..., None] * nodes))
    return 2 / math.sqrt(math.pi) * x * (inner * weights).sum(axis=-1)


def conv1d(
    x: mx.array,  # (N, T, C)
    weight: mx.array,  # (C, K, 1)
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> mx.array:
    """Each channel for itself."""
    assert (stride, padding, dilation, groups) == (1, 0, 1, x.shape[-1])
    width = weight.shape[1]
    length = x.shape[1] - width + 1
    return sum(x[:, k : k + length] * weight[:, k, 0] for k in range(width))


def quantized_matmul(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    *,
    transpose: bool = True,
    **how: Any,
) -> mx.array:
    weight = mx.dequantize(w, scales, biases, **how)
    return x @ (weight.swapaxes(-1, -2) if transpose else weight)


def gather_mm(
    a: mx.array,  # (..., M, K)
    b: mx.array,  # (E, K, N)
    *,
    rhs_indices: mx.array,
    sorted_indices: bool = False,
) -> mx.array:
    """Of all of the experts, where it is the chosen one."""
    chosen = (rhs_indices == expert for expert in range(len(b)))
    return sum(mx.where(c[..., None, None], a @ b[e], 0.0) for e, c in enumerate(chosen))


def gather_qmm(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None = None, *,
    rhs_indices: mx.array, sorted_indices: bool = False, transpose: bool = True,
    global_scale: None = None, **how: Any,
) -> mx.array:  # fmt: skip
    assert transpose and global_scale is None
    weight = mx.dequantize(w, scales, biases, **how).swapaxes(-1, -2)
    return gather_mm(x, weight, rhs_indices=rhs_indices)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    x = x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + eps)
    return x if weight is None else x * weight


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    x = rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)
    return x if bias is None else x + bias


def rope(
    x: mx.array,  # (N, H, T, D)
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: Any,
    freqs: mx.array | None = None,  # (dims / 2,) the wavelengths over 2 pi
) -> mx.array:
    wavelengths = np.array(freqs, dtype=np.float64) if base is None else _powers(base, dims)
    positions = scale * (np.array(offset).reshape(-1, 1, 1, 1) + np.arange(x.shape[2])[:, None])
    angles = positions / wavelengths  # (N or 1, 1, T, dims / 2)
    cos, sin = (mx.array(f(angles), dtype=mx.float64) for f in (np.cos, np.sin))
    if traditional:
        one, two = x[..., 0:dims:2], x[..., 1:dims:2]
        turned = mx.stack([one * cos - two * sin, one * sin + two * cos], axis=-1)
        turned = turned.reshape(*x.shape[:-1], dims)
    else:
        one, two = x[..., : dims // 2], x[..., dims // 2 : dims]
        turned = mx.concatenate([one * cos - two * sin, one * sin + two * cos], axis=-1)
    return mx.concatenate([turned, x[..., dims:]], axis=-1)


def _powers(base: float, dims: int) -> np.ndarray:
    return base ** (np.arange(0, dims, 2) / dims)


def attention(
    q: mx.array,  # (N, H, T, D)
    k: mx.array,  # (N, G, K, D), H a multiple of G
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    heads, (rows, keys) = q.shape[1], (q.shape[2], k.shape[2])
    k, v = (mx.repeat(part, heads // part.shape[1], axis=1) for part in (k, v))
    scores = q * scale @ k.swapaxes(-1, -2)  # (N, H, T, K)
    if isinstance(mask, str):
        mask = mx.arange(keys - rows, keys)[:, None] >= mx.arange(keys)
    if mask is not None:
        bias = mx.where(mask, 0.0, -math.inf) if mask.dtype == mx.bool_ else mask
        scores = scores + bias
    if sinks is not None:
        column = mx.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, column], axis=-1)
    return softmax(scores, axis=-1)[..., :keys] @ v


EXACT = {
    f.__name__: f
    for f in (
        exp, sigmoid, logaddexp, logsumexp, softmax, erf, conv1d, quantized_matmul, gather_mm,
        gather_qmm,
    )
}  # fmt: skip
EXACT_FAST = {
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "rope": rope,
    "scaled_dot_product_attention": attention,
}
