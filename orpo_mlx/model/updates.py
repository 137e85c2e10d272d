"""How adapters change weights, rows in, rows out: mlx-lm's rules of fusing, in float32.

The one meaning of "fused", whatever file is written.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.model.adapters import Adapter, put_onto
from orpo_mlx.model.mlx_lm_api import (
    DoRAEmbedding,
    DoRALinear,
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
)

ROWS_BYTES = 1_200_000  # of float32 rows computed at once; up to twenty such arrays are alive then


class Update(NamedTuple):
    """What one adapter makes of one weight W: W + scale * left @ right, or `trained`."""

    share: float  # of this adapter in the sum of several
    scale: float = 1.0
    left: mx.array | None = None  # (out, r), or (E, out, r)
    right: mx.array | None = None  # (r, in), or (E, r, in)
    magnitude: mx.array | None = None  # (out,): the norms that DoRA gives the rows
    trained: mx.array | None = None  # the trained weight itself


def updates_of(model: nn.Module, adapter: Adapter, share: float) -> dict[str, Update]:
    """The updates of an adapter by parameter name; puts it onto `model`.

    Raises OrpoError if it does not fit.
    """
    put_onto(model, adapter)
    if adapter.kind == "full":
        return {name: Update(share, trained=value) for name, value in adapter.weights.items()}
    modules = dict(model.named_modules())
    return {f"{path}.weight": _update(modules[path], share) for path in adapter.modules}


def _update(module: nn.Module, share: float) -> Update:
    scale, a, b = module.scale, module.lora_a, module.lora_b
    match module:
        case LoRALinear():
            return Update(share, scale, b.T, a.T)
        case DoRALinear():
            return Update(share, scale, b.T, a.T, module.m)
        case LoRAEmbedding():
            return Update(share, scale, a, b)
        case DoRAEmbedding():
            return Update(share, scale, a, b, module.m)
        case LoRASwitchLinear():
            return Update(share, scale, b, a)
    raise TypeError(type(module).__name__)


def apply_updates(
    rows: mx.array,  # (n, in) float32, of one matrix
    updates: Sequence[Update],
    start: int,  # the number of the first row
    expert: int | None,  # whose matrix it is
) -> mx.array:
    """The rows after all updates, each adding its share of its difference."""
    if len(updates) == 1 and updates[0].share == 1.0:
        return _by_one(rows, updates[0], start, expert)
    differences = [u.share * (_by_one(rows, u, start, expert) - rows) for u in updates]
    return rows + sum(differences, mx.zeros_like(rows))


def rows_at_once(width: int) -> int:
    """How many rows of a weight are computed at a time."""
    return max(1, ROWS_BYTES // (4 * max(width, 1)))


def fused_rows(weight: mx.array, updates: Sequence[Update]) -> Iterator[mx.array]:
    """The rows of a weight after all updates, of all its matrices, some at a time."""
    stacked = weight.ndim == 3
    matrices = weight if stacked else weight[None]
    count = rows_at_once(weight.shape[-1])
    for expert, matrix in enumerate(matrices):
        rows = matrix.reshape(-1, weight.shape[-1])
        for start in range(0, len(rows), count):
            some = rows[start : start + count].astype(mx.float32)
            yield apply_updates(some, updates, start, expert if stacked else None)


def _by_one(rows: mx.array, update: Update, start: int, expert: int | None) -> mx.array:
    span = slice(start, start + len(rows))
    if update.trained is not None:
        trained = update.trained if expert is None else update.trained[expert]
        return trained.reshape(-1, rows.shape[-1])[span].astype(mx.float32)
    left, right = update.left, update.right
    assert left is not None and right is not None
    if expert is not None:
        left, right = left[expert], right[expert]
    product = left[span].astype(mx.float32) @ right.astype(mx.float32)
    rows = rows + update.scale * product
    if update.magnitude is None:
        return rows
    norms = mx.linalg.norm(rows, axis=-1)
    return (update.magnitude[span].astype(mx.float32) / norms)[:, None] * rows
