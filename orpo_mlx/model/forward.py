"""Logits of the scored positions, by the model's own forward on right-padded rows."""

import mlx.core as mx
import mlx.nn as nn


def logits_at(
    model: nn.Module,
    inputs: mx.array,  # (N, T) int, right-padded
    positions: mx.array,  # (S,) int into the N * T positions
) -> mx.array:
    """Logits of the tokens that follow the given positions, shape (S, V) in the model's dtype."""
    logits = model(inputs)
    return logits.reshape(-1, logits.shape[-1])[positions]
