"""Quantized rows made plain, exactly, and plain rows quantized."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Packing(NamedTuple):
    """How a quantized layer is stored."""

    bits: int
    group_size: int
    mode: str


def plain_rows(
    weight: mx.array,
    others: Sequence[mx.array],  # scales, and biases if the mode has them
    packing: Packing,
    global_scale: mx.array | None = None,
) -> mx.array:
    """Exact in float32: scales are widened first, mx.dequantize computes in their type."""
    scales, *biases = (p.astype(mx.float32) if packing.mode == "affine" else p for p in others)
    return mx.dequantize(
        weight, scales, biases[0] if biases else None, packing.group_size, packing.bits,
        packing.mode, global_scale=global_scale, dtype=mx.float32,
    )  # fmt: skip


def packed_rows(
    rows: mx.array,
    packing: Packing,
    before: Sequence[mx.array],  # the scales, and biases, that the rows had
) -> list[mx.array]:
    """The weight, its scales and perhaps its biases.

    Each affine group keeps its own steps if they fit the new values better than new ones: finding
    them anew moves even what did not change.
    """
    if packing.mode != "affine":
        return list(mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode))
    typed = rows.astype(before[0].dtype)
    anew = list(mx.quantize(typed, packing.group_size, packing.bits))
    kept = [_on_steps(rows, packing, before), *before]
    better = _error(rows, kept, packing) <= _error(rows, anew, packing)  # (n, groups)
    return [_chosen(better, k, a) for k, a in zip(kept, anew, strict=True)]


def _on_steps(rows: mx.array, packing: Packing, before: Sequence[mx.array]) -> mx.array:
    """The rows as numbers of the steps given by scales and biases, packed as mlx packs them."""
    scales, biases = (p.astype(mx.float32)[..., None] for p in before)
    groups = rows.reshape(len(rows), -1, packing.group_size)
    steps = mx.where(scales == 0, 0, (groups - biases) / mx.where(scales == 0, 1, scales))
    codes = np.array(mx.clip(mx.round(steps), 0, 2**packing.bits - 1).astype(mx.uint8))
    # A row is one string of bits, the lowest of each number first.
    flags = (codes[..., None] >> np.arange(packing.bits, dtype=np.uint8)) & 1
    packed = np.packbits(flags.reshape(len(rows), -1), axis=-1, bitorder="little")
    return mx.array(packed).view(mx.uint32)


def _error(rows: mx.array, parts: Sequence[mx.array], packing: Packing) -> mx.array:
    """The squared error of every group, (n, groups)."""
    gap = plain_rows(parts[0], parts[1:], packing) - rows
    return (gap * gap).reshape(len(rows), -1, packing.group_size).sum(axis=-1)


def _chosen(better: mx.array, kept: mx.array, anew: mx.array) -> mx.array:
    """Of two arrays (n, groups * k), the one or the other group for group."""
    count, groups = better.shape
    pair = (p.reshape(count, groups, -1) for p in (kept, anew))
    return mx.where(better[..., None], *pair).reshape(kept.shape)
