"""LoRA tensors in PEFT's shapes, and back: plain layers, embeddings, experts. Arrays in and out.

Shapes: r rank, E experts. PEFT keeps experts flat: lora_A (E * r, in), expert by expert, but
lora_B (out, r * E), the expert fastest (peft/tuners/lora/layer.py, ParamWrapper).
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

PREFIX = "base_model.model."
Rows = tuple[int, int, int]  # start, stop, step


class Factors(NamedTuple):
    """A module's adapter as mlx-lm has it."""

    a: mx.array  # (in, r); an embedding's (V, r); experts' (E, r, in)
    b: mx.array  # (r, out); (r, D); (E, out, r)
    m: mx.array | None = None  # DoRA's magnitude (out,)


class Part(NamedTuple):
    """Experts that are some rows of a fused tensor."""

    rows: Rows | None  # None: all
    factors: Factors


def flat_experts(parts: Sequence[Part]) -> tuple[mx.array, mx.array]:
    """lora_A and lora_B of the fused tensor: A stacked, B in blocks; the rank is the sum."""
    a = mx.concatenate([part.factors.a for part in parts], axis=1)  # (E, sum of r, in)
    b = _blocks(parts)  # (E, out, sum of r)
    return a.reshape(-1, a.shape[2]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)


def _blocks(parts: Sequence[Part]) -> mx.array:
    if parts[0].rows is None:
        return parts[0].factors.b
    shape = parts[0].factors.b.shape
    count, out = shape[0], 2 * shape[1]  # gate and up
    rank = sum(part.factors.b.shape[2] for part in parts)
    fused = mx.zeros((count, out, rank), parts[0].factors.b.dtype)
    start = 0
    for rows, (_, b, _) in parts:
        assert rows is not None
        end = start + b.shape[2]
        fused[:, slice(*rows), start:end] = b
        start = end
    return fused


def stacked_experts(a: mx.array, b: mx.array, experts: int) -> Factors:
    """Back: (E * r, in) and (out, r * E) as (E, r, in) and (E, out, r)."""
    return Factors(
        a.reshape(experts, -1, a.shape[1]), b.reshape(b.shape[0], -1, experts).transpose(2, 0, 1)
    )


def split_experts(fused: Factors, rows: Sequence[Rows]) -> list[Factors]:
    """Gate and up of a fused adapter: half the rank each where B has blocks, else all of it."""
    halves = [fused.b[:, slice(*r)] for r in rows]
    rank = fused.a.shape[1]
    if rank % 2 == 0 and len(rows) == 2:
        half = rank // 2
        if _zero(halves[0][:, :, half:]) and _zero(halves[1][:, :, :half]):
            return [
                Factors(fused.a[:, :half], halves[0][:, :, :half]),
                Factors(fused.a[:, half:], halves[1][:, :, half:]),
            ]
    return [Factors(fused.a, b) for b in halves]


def is_zero(factors: Factors) -> bool:
    """Whether an adapter changes nothing, and never would: it was not adapted."""
    return _zero(factors.b)


def pad_to_rank(factors: Factors, rank: int) -> Factors:
    """The same adapter with zeros up to a rank."""
    a, b, m = factors
    if a.ndim == 3:
        more = rank - a.shape[1]
        return Factors(
            mx.pad(a, [(0, 0), (0, more), (0, 0)]), mx.pad(b, [(0, 0), (0, 0), (0, more)]), m
        )
    more = rank - a.shape[1]
    return Factors(mx.pad(a, [(0, 0), (0, more)]), mx.pad(b, [(0, more), (0, 0)]), m)


def scale_factors(factors: Factors, by: float) -> Factors:
    """The same adapter times a number, in lora_b: in its own type if that holds it exactly."""
    if by == 1.0:
        return factors
    product = factors.b.astype(mx.float32) * by
    rounded = product.astype(factors.b.dtype)
    return factors._replace(b=rounded if mx.array_equal(rounded, product) else product)


def _zero(array: mx.array) -> bool:
    return not mx.any(array != 0).item()
