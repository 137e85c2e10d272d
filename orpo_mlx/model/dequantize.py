"""Quantized weights made plain, exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn


class Packing(NamedTuple):
    """How a quantized weight is stored."""

    bits: int
    group_size: int
    mode: str


def packing_of(module: nn.Module) -> Packing | None:
    """None for a module that is not quantized."""
    return Packing(module.bits, module.group_size, module.mode) if "scales" in module else None


def dequantize(
    weight: mx.array,
    others: Sequence[mx.array],  # scales, and biases if the mode has them
    packing: Packing,
    global_scale: mx.array | None = None,  # one, or one for each expert
    dtype: mx.Dtype = mx.float32,
) -> mx.array:
    """Computed in `dtype`, exact in float32: mx.dequantize computes in the type of the scales."""
    if global_scale is not None and global_scale.ndim:
        experts = zip(weight, *others, global_scale, strict=True)
        return mx.stack([dequantize(w, o, packing, g, dtype) for w, *o, g in experts])
    scales, *biases = (p.astype(dtype) if packing.mode == "affine" else p for p in others)
    return mx.dequantize(
        weight,
        scales,
        biases[0] if biases else None,
        packing.group_size,
        packing.bits,
        packing.mode,
        global_scale=global_scale,
        dtype=dtype,
    )


def usual_dtype(module: nn.Module, other: mx.Dtype = mx.float32) -> mx.Dtype:
    """The type in which mlx-lm dequantizes a module: that of its scales, else `other`."""
    return module.scales.dtype if module.mode == "affine" else other


def plain_weight(module: nn.Module, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The weight of a module, quantized or not, in a type."""
    packing = packing_of(module)
    if packing is None:
        return module.weight.astype(dtype)
    others = [p for name in ("scales", "biases") if (p := module.get(name)) is not None]
    return dequantize(module.weight, others, packing, module.get("global_scale"), dtype)
