"""Plain rows quantized again as they were stored."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from orpo_mlx.model.dequantize import Packing, dequantize

ON_STEP = 1e-4  # of a step: float32's error of what did not change
# Mean of f (1 - f), f the position between two steps: 1/6 where values moved by whole
# steps, less where they are still near their old ones.
LITTLE = 0.14


def packed_rows(
    rows: mx.array,
    packing: Packing,
    before: Sequence[mx.array],  # the scales, and biases, that the rows had
    first_row: int,  # its number is the seed of the rounding
) -> list[mx.array]:
    """The weight, its scales and perhaps its biases.

    An affine group whose values moved by less than its steps keeps these, and is rounded at
    random: rounded to the nearest step such changes would vanish, and steps that mlx computes
    again move all values of the group. Another group takes what is nearer, its own steps or new
    ones.
    """
    if packing.mode != "affine":
        return list(mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode))
    typed = rows.astype(before[0].dtype)
    fresh = list(mx.quantize(typed, packing.group_size, packing.bits))
    weight, moved_little = _on_steps(rows, packing, before, first_row)
    kept = [weight, *before]
    stays = moved_little | (_error(rows, kept, packing) <= _error(rows, fresh, packing))
    return [_chosen(stays, k, a) for k, a in zip(kept, fresh, strict=True)]


def _on_steps(
    rows: mx.array, packing: Packing, before: Sequence[mx.array], first_row: int
) -> tuple[mx.array, mx.array]:
    """The rows in the steps given by scales and biases, packed as mlx packs them, and which of
    their groups (n, groups) moved by less than a step."""
    scales, biases = (p.astype(mx.float32)[..., None] for p in before)
    groups = rows.reshape(len(rows), -1, packing.group_size)
    steps = mx.where(scales == 0, 0, (groups - biases) / mx.where(scales == 0, 1, scales))
    nearest, below = mx.round(steps), mx.floor(steps)
    spread = ((steps - below) * (below + 1 - steps)).mean(axis=-1, keepdims=True)
    chance = mx.random.uniform(shape=steps.shape, key=mx.random.key(first_row))
    at_random = mx.where(mx.abs(steps - nearest) < ON_STEP, nearest, mx.floor(steps + chance))
    little = spread < LITTLE
    codes = mx.clip(mx.where(little, at_random, nearest), 0, 2**packing.bits - 1)
    return _packed(np.array(codes.astype(mx.uint8)), packing.bits), little[..., 0]


def _packed(codes: np.ndarray, bits: int) -> mx.array:
    """A row is one string of bits, the lowest of each number first."""
    flags = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    packed = np.packbits(flags.reshape(len(codes), -1), axis=-1, bitorder="little")
    return mx.array(packed).view(mx.uint32)


def _error(rows: mx.array, parts: Sequence[mx.array], packing: Packing) -> mx.array:
    """The squared error of every group, (n, groups)."""
    gap = dequantize(parts[0], parts[1:], packing) - rows
    return (gap * gap).reshape(len(rows), -1, packing.group_size).sum(axis=-1)


def _chosen(stays: mx.array, kept: mx.array, fresh: mx.array) -> mx.array:
    """Of two arrays (n, groups * k), the first for the groups that stay."""
    count, groups = stays.shape
    pair = (p.reshape(count, groups, -1) for p in (kept, fresh))
    return mx.where(stays[..., None], *pair).reshape(kept.shape)
