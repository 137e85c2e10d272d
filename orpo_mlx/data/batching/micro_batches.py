"""The pairs of one step, cut into micro-batches; which pairs form it is order.py's matter."""

from collections.abc import Callable

import numpy as np


def cut_by_shape(
    pairs: np.ndarray,  # (B,) of one step
    shapes: np.ndarray,  # (B,) of each
    size: int,
) -> list[np.ndarray]:
    """Whole micro-batches of one shape, the other pairs alone: a shape is compiled at most twice,
    for one pair and for `size`."""
    parts = []
    for shape in np.unique(shapes):
        alike = pairs[shapes == shape]
        full = len(alike) // size * size
        parts += [*_chunks(alike[:full], size), *_chunks(alike[full:], 1)]
    return parts


def cut_by_group(
    pairs: np.ndarray,  # (B,) of one step
    groups: np.ndarray,  # (B,) of each, -1: none
    lengths: np.ndarray,  # (B,) of each
    size: int,
    pays: Callable[[np.ndarray], bool],  # whether a micro-batch of fewer than `size` does
) -> list[np.ndarray]:
    """Micro-batches of at most `size` pairs: those of a group together where that saves work, the
    others by length."""
    order = np.argsort(lengths, kind="stable")
    pairs, groups = pairs[order], groups[order]
    parts, rest = [], np.ones(len(pairs), dtype=bool)
    for group in np.unique(groups[groups >= 0]):
        members = np.flatnonzero(groups == group)
        for chunk in _chunks(members, size):
            if len(chunk) == size or (1 < len(chunk) < len(pairs) and pays(pairs[chunk])):
                parts.append(pairs[chunk])
                rest[chunk] = False
    return parts + _chunks(pairs[rest], size)


def _chunks(pairs: np.ndarray, size: int) -> list[np.ndarray]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
