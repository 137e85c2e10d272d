"""The fused folder as mlx-lm loads it: every weight against base + adapter, one at a time.

Both folders go through the model's own sanitize, so that a wrong name, order or orientation is
noticed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.errors import collected
from orpo_mlx.events import Callback, Progress
from orpo_mlx.interop.fuse.requantize import packed_rows
from orpo_mlx.interop.fuse.tensor_plan import layout_of
from orpo_mlx.interop.fuse.write import check_base_rows
from orpo_mlx.model.dequantize import Packing, dequantize
from orpo_mlx.model.updates import Update, apply_updates, rows_at_once

# Relative, of a product with a random vector. Both sides are rounded alike; sums in another order
# round a few values to the other side.
TOLERANCES = {mx.float32: 1e-5, mx.float16: 1e-4, mx.bfloat16: 5e-4}
_PARTS = ("scales", "biases", "global_scale")


class Weight:
    """A parameter of a lazily loaded model, quantized or not, as matrices."""

    def __init__(self, arrays: list[mx.array], packing: Packing | None):
        self.arrays, self.packing = arrays, packing
        weight = arrays[0]
        self.dtype = (arrays[1] if packing else weight).dtype
        self.matrices = math.prod(weight.shape[:-2])
        self.rows = weight.shape[-2] if weight.ndim > 1 else 1
        self.stacked = weight.ndim == 3

    def scales_of(self, matrix: int, start: int, count: int) -> list[mx.array]:
        """The scales of some rows, and their biases."""
        first = matrix * self.rows + start
        parts = self.arrays[1:3]
        return [a.reshape(-1, a.shape[-1])[first : first + count] for a in parts]

    def read(self, matrix: int, start: int, stop: int) -> mx.array:
        """Rows of one matrix in float32."""
        span = slice(matrix * self.rows + start, matrix * self.rows + stop)
        parts = [a.reshape(-1, a.shape[-1] if a.ndim else 1)[span] for a in self.arrays[:3]]
        if self.packing is None:
            return parts[0].astype(mx.float32)
        scale = self.arrays[3][matrix] if len(self.arrays) > 3 else None
        return dequantize(parts[0], parts[1:], self.packing, scale)


def check_weights(
    base: nn.Module,
    fused: nn.Module,
    updates: Mapping[str, Sequence[Update]],
    report: Callback,
) -> int:
    """Compare two lazily loaded models, which are emptied; return how many weights were compared.

    Raises OrpoError with the weights that are not base + adapter, or with the first of the base
    that is not finite.
    """
    expected, actual = _weights(base), _weights(fused)
    if odd := sorted(expected.keys() ^ actual.keys()):
        raise collected("Not in both the base and the fused model:", odd)
    wrong, total = [], len(expected)
    for number, name in enumerate(sorted(expected), 1):
        gap, limit = _gap(name, expected.pop(name), actual.pop(name), updates.get(name, ()))
        if not gap <= limit:
            wrong.append(f"{name}: off by {gap:.1e} of its size (allowed: {limit:.0e})")
        mx.clear_cache()
        report(Progress("Checking weights", number, total))
    if wrong:
        raise collected("The fused weights are not base + adapter, nothing was written:", wrong)
    return total


def _gap(name: str, base: Weight, fused: Weight, updates: Sequence[Update]) -> tuple[float, float]:
    """How far a product of the fused weight is from that of base + adapter, and what is allowed."""
    again = fused.packing if updates else None
    dtype = mx.float32 if fused.packing else fused.dtype
    wanted = mx.concatenate(list(_products(base, updates, again, fused.dtype if again else dtype)))
    if not mx.isfinite(wanted).all().item():
        _check_base(name, base)
    base.arrays.clear()
    mx.clear_cache()
    made = mx.concatenate(list(_products(fused, (), None, mx.float32)))
    size = mx.linalg.norm(wanted)
    gap: Any = mx.linalg.norm(made - wanted) / mx.maximum(size, 1e-20)
    return float(gap.item()), TOLERANCES.get(fused.dtype, 1e-5)


def _check_base(name: str, base: Weight) -> None:
    """Raise OrpoError if a weight of the base is not finite; a product of others may overflow."""
    count = rows_at_once(base.read(0, 0, 1).shape[-1])
    for matrix in range(base.matrices):
        for start in range(0, base.rows, count):
            check_base_rows(name, base.read(matrix, start, min(start + count, base.rows)))


def _products(
    weight: Weight, updates: Sequence[Update], again: Packing | None, dtype: mx.Dtype
) -> Iterator[mx.array]:
    """Every row times one random vector."""
    first = weight.read(0, 0, 1)
    vector = mx.random.normal((first.shape[-1],), key=mx.random.key(first.shape[-1]))
    count = rows_at_once(first.shape[-1])
    for matrix in range(weight.matrices):
        for start in range(0, weight.rows, count):
            rows = weight.read(matrix, start, min(start + count, weight.rows))
            if updates:
                rows = apply_updates(rows, updates, start, matrix if weight.stacked else None)
            if not again:
                rows = rows.astype(dtype).astype(mx.float32)
            else:
                before = weight.scales_of(matrix, start, len(rows))
                first_row = matrix * weight.rows + start
                packed, *others = packed_rows(rows, again, before, first_row)
                rows = dequantize(packed, others, again)
            product = rows @ vector
            mx.eval(product)
            yield product


def _weights(model: nn.Module) -> dict[str, Weight]:
    """Every parameter by name, the parts of a quantized one together; empties the model."""
    packings = layout_of(model).packings
    arrays = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    weights = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition(".")
        if path not in packings:
            weights[name] = Weight([array], None)
        elif leaf == "weight":
            parts = [arrays[f"{path}.{p}"] for p in _PARTS if f"{path}.{p}" in arrays]
            weights[name] = Weight([array, *parts], packings[path])
        elif leaf not in _PARTS:
            weights[name] = Weight([array], None)
    return weights
