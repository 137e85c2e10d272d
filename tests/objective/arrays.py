"""Targets for the tests of log-probs, and the float64 values that an array holds."""

import mlx.core as mx
import numpy as np

POSITIONS, VOCABULARY = 40, 97


def random_targets(seed: int = 1, vocabulary: int = VOCABULARY) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, vocabulary, POSITIONS))


def exact(array: mx.array) -> np.ndarray:
    """In float64, the very values that the array holds."""
    return np.array(array.astype(mx.float32), dtype=np.float64)
