"""How far one model is from another: log-probs of the full vocabulary, token by token."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np


class TokenDivergence(NamedTuple):
    """Of each of T tokens."""

    kl: np.ndarray  # (T,) float64, KL(before || after) in nats
    same: np.ndarray  # (T,) bool, whether the likeliest successor is the same


def word_logps(
    model: Any,
    ids: list[int] | np.ndarray,
    start: int = 0,  # the first token whose successor is asked for
    cache: Any = None,
) -> mx.array:
    """(T, V) float32: what follows each token but the last, for every word."""
    logits = model(mx.array(ids)[None, :-1], cache=cache)[0, start:].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def token_divergence(before: np.ndarray, after: np.ndarray) -> TokenDivergence:
    """Of two models' log-probs (T, V)."""
    with np.errstate(invalid="ignore"):  # a word that was ruled out: 0 * inf
        terms = np.exp(before) * (before - after)
    kl = np.where(np.isneginf(before), 0, terms).sum(-1, dtype=np.float64)
    return TokenDivergence(kl, before.argmax(-1) == after.argmax(-1))
