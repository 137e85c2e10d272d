"""Quantized rows made plain, exactly, and plain rows quantized."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx


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


def packed_rows(rows: mx.array, packing: Packing, dtype: mx.Dtype) -> list[mx.array]:
    """The weight, its scales and perhaps its biases; affine scales get `dtype`."""
    if packing.mode == "affine":
        rows = rows.astype(dtype)
    return list(mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode))
