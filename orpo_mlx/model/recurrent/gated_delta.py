"""The gated delta rule over chunks of tokens: what mlx-lm's loop computes, by matrix products.

Yang, Kautz, Hatamizadeh 2024, "Gated Delta Networks" (arXiv 2412.06464), section 3.3; with a decay
for each channel, Kimi Linear (arXiv 2510.26692). A token with key k, query q, value v, rate beta
and decay g changes the state S, (Dv, Dk), and reads it:

    u = beta (v - g S k),  S <- g S + u k^T,  y = S q
"""

from typing import Any

import mlx.core as mx

CHUNK = 64
# Tokens whose chunks are computed again for the gradient: only the state between spans is kept.
SPAN = 256


def log_decay(
    A_log: mx.array,  # (H,), or (H, 1) where each channel has a decay
    a: mx.array,  # (B, T, H) or (B, T, H, D)
    dt_bias: mx.array,  # (H,) or (H, D)
    lower_bound: float | None = None,
) -> mx.array:
    """log g of every token, in float32, at most 0: g itself underflows."""
    rate = mx.exp(A_log.astype(mx.float32))
    if lower_bound is None:
        # softplus, as mx.nn.softplus has it
        return -rate * mx.logaddexp(a + dt_bias, 0).astype(mx.float32)
    return lower_bound * mx.sigmoid(rate * (a.astype(mx.float32) + dt_bias))


def gated_delta(
    q: mx.array,  # (B, T, Hk, Dk)
    k: mx.array,  # (B, T, Hk, Dk)
    v: mx.array,  # (B, T, Hv, Dv), Hv a multiple of Hk
    log_g: mx.array,  # (B, T, Hv), or (B, T, Hv, Dk) with a decay for each channel
    beta: mx.array,  # (B, T, Hv)
    state: mx.array,  # (B, Hv, Dv, Dk)
) -> tuple[mx.array, mx.array]:
    """Outputs (B, T, Hv, Dv) and the state after the last token, both in float32."""
    given = [x.astype(mx.float32) for x in (q, k, v, log_g, beta)]
    state, outputs = state.astype(mx.float32), []
    span: Any = mx.checkpoint(_span)
    cuts = list(range(SPAN, q.shape[1], SPAN))
    for parts in zip(*(mx.split(x, cuts, axis=1) for x in given), strict=True):
        y, state = span(*parts, state)
        outputs.append(y)
    return mx.concatenate(outputs, axis=1), state


def _span(
    q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array
) -> list[mx.array]:
    """The same of tokens whose chunks are all alive at once."""
    (batch, tokens, groups, width), (heads, height) = k.shape, v.shape[2:]
    # Powers of 2, which halve; what fills the last chunk up changes no state: beta 0, decay 1.
    size = min(CHUNK, 1 << (tokens - 1).bit_length())
    q, k, v, log_g, beta = (_chunks(x, groups, size) for x in (q, k, v, log_g, beta))
    decay = mx.exp(log_g.cumsum(axis=-2))  # from the chunk's beginning, (..., C, 1 or Dk)
    left = mx.exp(log_g.cumsum(axis=-2, reverse=True, inclusive=False))  # to its end
    keys = k.swapaxes(-1, -2)
    if log_g.shape[-1] == 1:
        between = _decayed_products(None, None, log_g)
        seen = (k @ keys) * between
        read = (q @ keys) * (between + mx.eye(size))
    else:
        seen = _decayed_products(k, k, log_g)
        read = _decayed_products(q, k, log_g) + mx.eye(size) * (q * k).sum(axis=-1, keepdims=True)
    # u = solved (beta v) - solved (beta decay k) S, S the state before the chunk
    solved: Any = _inverse(beta * seen)
    new, old = solved @ (beta * v), solved @ (beta * decay * k)
    carried, written = decay[..., -1, :, None], (k * left).swapaxes(-1, -2)
    s = state.reshape(batch, groups, -1, height, width).swapaxes(-1, -2)  # (B, Hk, r, Dk, Dv)
    updates, states = [], []
    for chunk in range(new.shape[3]):
        states.append(s)
        updates.append(new[:, :, :, chunk] - old[:, :, :, chunk] @ s)
        s = carried[:, :, :, chunk] * s + written[:, :, :, chunk] @ updates[-1]
    y = (q * decay) @ mx.stack(states, axis=3) + read @ mx.stack(updates, axis=3)
    y = y.transpose(0, 3, 4, 1, 2, 5).reshape(batch, -1, heads, height)[:, :tokens]
    return [y, s.swapaxes(-1, -2).reshape(state.shape)]


def _chunks(x: mx.array, groups: int, size: int) -> mx.array:
    """(B, T, H) or (B, T, H, D) as (B, Hk, H / Hk, N, C, D), filled up with zeros."""
    x = mx.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(len(x), x.shape[1] // size, size, groups, x.shape[2] // groups, -1)
    return x.transpose(0, 3, 4, 1, 2, 5)


def _decayed_products(x: mx.array | None, y: mx.array | None, log_g: mx.array) -> mx.array:
    """sum over channels of x_i y_j exp(log_g_{j+1} + ... + log_g_i) where j < i, else 0: (.., C, C)

    from (.., C, D) each; None stands for ones. By halves: every exponent is a sum of log decays
    and so at most 0, never a difference of sums, which would lose what follows a strong decay.
    """
    if log_g.shape[-2] == 1:
        return mx.zeros((*log_g.shape[:-1], 1))
    log_g = _halves(log_g)
    after = mx.exp(log_g[..., 1, :, :].cumsum(axis=-2))
    before = mx.exp(log_g[..., 0, :, :].cumsum(axis=-2, reverse=True, inclusive=False))
    if x is not None and y is not None:
        x, y = _halves(x), _halves(y)
        after, before = x[..., 1, :, :] * after, y[..., 0, :, :] * before
    return _assembled(_decayed_products(x, y, log_g), after @ before.swapaxes(-1, -2))


def _halves(x: mx.array) -> mx.array:
    """(.., C, D) as (.., 2, C / 2, D)."""
    return x.reshape(*x.shape[:-2], 2, -1, x.shape[-1])


def _assembled(diagonal: mx.array, corner: mx.array) -> mx.array:
    """The matrix (.., C, C) with these two blocks (.., 2, C / 2, C / 2) on its diagonal and this
    one below."""
    upper = mx.concatenate([diagonal[..., 0, :, :], mx.zeros_like(corner)], axis=-1)
    lower = mx.concatenate([corner, diagonal[..., 1, :, :]], axis=-1)
    return mx.concatenate([upper, lower], axis=-2)


@mx.custom_function
def _inverse(a: mx.array) -> mx.array:
    """(I + a)^-1 of strictly lower matrices (.., C, C), C a power of 2, by halves.

    A series of powers of a would cancel where keys resemble each other.
    """
    half = a.shape[-1] // 2
    if not half:
        return mx.ones_like(a)
    blocks: Any = _inverse(mx.stack([a[..., :half, :half], a[..., half:, half:]], axis=-3))
    corner = blocks[..., 1, :, :] @ (a[..., half:, :half] @ blocks[..., 0, :, :])
    return _assembled(blocks, -corner)


@_inverse.vjp
def _inverse_gradient(a: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    transposed = inverse.swapaxes(-1, -2)
    return -mx.tril(transposed @ cotangent @ transposed, -1)
