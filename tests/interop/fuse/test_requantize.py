"""Quantizing again: what did not change stays bit for bit, small changes are kept in the mean."""

import mlx.core as mx
import pytest

from orpo_mlx.interop.fuse.requantize import packed_rows
from orpo_mlx.model.dequantize import Packing, dequantize

BITS = [2, 3, 4, 5, 6, 8]


def quantized(packing: Packing, dtype: mx.Dtype = mx.bfloat16) -> list[mx.array]:
    rows = mx.random.normal((24, 256), key=mx.random.key(packing.bits)).astype(dtype)
    rows[3, :64] = 0.5  # a group of one value
    rows[4] = 0.0
    return list(mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_rows_that_did_not_change_come_out_as_they_were(
    bits: int, group_size: int, dtype: mx.Dtype
) -> None:
    packing = Packing(bits, group_size, "affine")
    weight, *others = quantized(packing, dtype)
    again = packed_rows(dequantize(weight, others, packing), packing, others, 0)
    assert all(mx.array_equal(a, b) for a, b in zip(again, [weight, *others], strict=True))


def test_steps_that_mlx_computes_again_move_what_did_not_change() -> None:
    """The reason for keeping them."""
    packing = Packing(4, 64, "affine")
    weight, *others = quantized(packing)
    rows = dequantize(weight, others, packing)
    fresh = mx.quantize(rows.astype(mx.bfloat16), 64, 4)
    assert mx.abs(dequantize(fresh[0], fresh[1:], packing) - rows).max() > 0.01


def changed(packing: Packing, share: float) -> tuple[list[mx.array], mx.array, mx.array]:
    """Scales and biases, the rows, and a random change of them by a share of their steps."""
    weight, *others = quantized(packing)
    rows = dequantize(weight, others, packing)
    steps = mx.repeat(mx.abs(others[0].astype(mx.float32)), packing.group_size, axis=1)
    return others, rows, share * steps * mx.random.normal(rows.shape, key=mx.random.key(9))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_changes_below_a_step_are_kept_in_the_mean(bits: int, share: float) -> None:
    """To the nearest of the same steps they vanish; on new steps all values move."""
    packing = Packing(bits, 64, "affine")
    others, rows, change = changed(packing, share)
    weight, *after = packed_rows(rows + change, packing, others, 0)
    made = dequantize(weight, after, packing) - rows
    kept = (made * change).sum() / (change * change).sum()
    # The outermost steps take no change outwards (at 2 bits those of every other value), and where
    # 0.3 of a step reaches beyond half a step, the nearest one is taken.
    assert (0.4 if bits == 2 else 0.65) < kept.item() < 1.25
    # At random between two steps: f (1 - f) of a step squared, f about the share.
    step = mx.abs(others[0].astype(mx.float32)).mean()
    assert ((made - change) ** 2).mean() < 1.5 * share * step**2


@pytest.mark.parametrize("bits", BITS)
def test_changes_of_many_steps_are_as_near_as_on_new_ones(bits: int) -> None:
    packing = Packing(bits, 64, "affine")
    others, rows, change = changed(packing, 3.0)

    def errors(parts: list[mx.array]) -> mx.array:
        gap = dequantize(parts[0], parts[1:], packing) - rows - change
        return (gap * gap).reshape(24, -1, 64).sum(-1)

    ours = errors(packed_rows(rows + change, packing, others, 0))
    fresh = errors(list(mx.quantize((rows + change).astype(mx.bfloat16), 64, bits)))
    # A group whose values fell near its own steps by chance is rounded on them.
    assert (ours <= fresh).mean().item() > 0.9
    assert ours.sum().item() < 1.05 * fresh.sum().item()


@pytest.mark.parametrize(
    ("mode", "bits", "size"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
)
def test_small_floats_are_quantized_again_by_mlx(mode: str, bits: int, size: int) -> None:
    packing = Packing(bits, size, mode)
    weight, *others = quantized(packing)
    rows = dequantize(weight, others, packing)
    again = packed_rows(rows, packing, others, 0)
    assert mx.array_equal(dequantize(again[0], again[1:], packing), rows)
