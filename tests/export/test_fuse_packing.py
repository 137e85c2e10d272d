"""Quantizing again: what did not change stays bit for bit, the rest is nearer than mlx-lm's."""

import mlx.core as mx
import pytest

from orpo_mlx.export.fusion.packing import Packing, packed_rows, plain_rows

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
    again = packed_rows(plain_rows(weight, others, packing), packing, others)
    assert all(mx.array_equal(a, b) for a, b in zip(again, [weight, *others], strict=True))


def test_steps_that_mlx_finds_anew_move_what_did_not_change() -> None:
    """The reason for keeping them."""
    packing = Packing(4, 64, "affine")
    weight, *others = quantized(packing)
    rows = plain_rows(weight, others, packing)
    anew = mx.quantize(rows.astype(mx.bfloat16), 64, 4)
    assert mx.abs(plain_rows(anew[0], anew[1:], packing) - rows).max() > 0.01


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_no_group_is_farther_than_on_new_steps(bits: int, size: float) -> None:
    packing = Packing(bits, 64, "affine")
    weight, *others = quantized(packing)
    rows = plain_rows(weight, others, packing)
    rows = rows + size * mx.random.normal(rows.shape, key=mx.random.key(9))

    def errors(parts: list[mx.array]) -> mx.array:
        gap = plain_rows(parts[0], parts[1:], packing) - rows
        return (gap * gap).reshape(24, -1, 64).sum(-1)

    ours = errors(packed_rows(rows, packing, others))
    anew = errors(list(mx.quantize(rows.astype(mx.bfloat16), 64, bits)))
    assert (ours <= anew).all().item()
    if size < 1 and bits > 2:
        assert ours.sum().item() < 0.999 * anew.sum().item()


@pytest.mark.parametrize(("mode", "bits", "size"), [("mxfp4", 4, 32), ("mxfp8", 8, 32),
                                                    ("nvfp4", 4, 16)])  # fmt: skip
def test_small_floats_are_found_anew_by_mlx(mode: str, bits: int, size: int) -> None:
    packing = Packing(bits, size, mode)
    weight, *others = quantized(packing)
    rows = plain_rows(weight, others, packing)
    again = packed_rows(rows, packing, others)
    assert mx.array_equal(plain_rows(again[0], again[1:], packing), rows)
