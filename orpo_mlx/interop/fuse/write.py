"""The tensors of a fused folder, computed a few rows at a time while they are written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.checkpoint.shards import DTYPES, LazyTensor, bytes_of
from orpo_mlx.interop.fuse.requantize import packed_rows
from orpo_mlx.interop.fuse.rows import FileTensor
from orpo_mlx.interop.fuse.tensor_plan import WEIGHT, Edit, Job, plain_shape
from orpo_mlx.model.dequantize import Packing, dequantize
from orpo_mlx.model.safetensors import DTYPE_BYTES
from orpo_mlx.model.updates import apply_updates, rows_at_once


@dataclass
class Tally:
    """How much of what the adapters change outlives quantizing again, summed over all weights."""

    wanted: float = 0.0  # squared norm of the change
    kept: float = 0.0  # product of the change wanted and the change made
    error: float = 0.0  # squared norm of their difference

    def add(self, wanted: mx.array, made: mx.array) -> None:
        gap = made - wanted
        sums = mx.stack([(wanted * wanted).sum(), (wanted * made).sum(), (gap * gap).sum()])
        values: Any = sums.tolist()
        self.wanted += values[0]
        self.kept += values[1]
        self.error += values[2]


class Packed:
    """The scales and biases of a quantized weight, kept until their turn to be written."""

    def __init__(self) -> None:
        self._parts: dict[str, list[mx.array]] = {"scales": [], "biases": []}

    def add(self, *parts: mx.array) -> None:
        for kept, part in zip(self._parts.values(), parts, strict=False):
            kept.append(part)

    def pieces(self, name: str) -> Iterator[memoryview]:
        for part in self._parts.pop(name):
            yield bytes_of(part)


def fused_tensors(
    stored: Mapping[str, FileTensor], jobs: Mapping[str, Job], tally: Tally
) -> dict[str, LazyTensor]:
    """Every tensor of the fused folder by name."""
    made: dict[str, LazyTensor] = {}
    parts = {
        f"{name.removesuffix(WEIGHT)}.{leaf}"
        for name, job in jobs.items()
        if job.packing
        for leaf in ("scales", "biases", "global_scale")
    }
    for name, tensor in stored.items():
        if name in parts:
            continue
        if (job := jobs.get(name)) is None:
            size = tensor.tensor.size_bytes
            made[name] = LazyTensor(tensor.dtype, tensor.shape, size, tensor.pieces)
        elif job.repack:
            made |= _repacked(name, stored, job, tally)
        else:
            made[name] = _plain(name, stored, job)
    if any(job.repack for job in jobs.values()):
        return made  # scales wait for their weight's turn, and should not for long
    # torch wants every tensor to begin at a multiple of its own size
    return dict(sorted(made.items(), key=lambda item: -DTYPE_BYTES[item[1].dtype]))


def _plain(name: str, stored: Mapping[str, FileTensor], job: Job) -> LazyTensor:
    tensor = stored[name]
    shape = plain_shape(tensor, job.packing) if job.packing else tensor.shape
    size = DTYPE_BYTES[job.dtype]
    for length in shape:
        size *= length

    def make() -> Iterator[memoryview]:
        for old, rows in new_rows(name, stored, job):
            cast = rows.astype(DTYPES[job.dtype])
            _check_finite(name, old, cast, job.dtype)
            yield bytes_of(cast)
            del old, rows, cast
            mx.clear_cache()

    return LazyTensor(job.dtype, shape, size, make)


def _repacked(
    name: str, stored: Mapping[str, FileTensor], job: Job, tally: Tally
) -> dict[str, LazyTensor]:
    """The weight, its scales and its biases; the weight's turn computes all three."""
    path, packed = name.removesuffix(WEIGHT), Packed()
    assert job.packing is not None
    packing = job.packing

    def make() -> Iterator[memoryview]:
        at = 0
        for old, rows in new_rows(name, stored, job):
            before = _scales_of(path, stored, at, at + len(rows))
            _check_finite(name, old, rows, "F32")
            weight, *others = packed_rows(rows, packing, before, at)
            at += len(rows)
            mx.eval(weight, *others)
            packed.add(*others)
            back = dequantize(weight, others, packing)
            tally.add(rows - old, back - old)
            yield bytes_of(weight)
            del weight, back, old, rows
            mx.clear_cache()

    lazy = {}
    for leaf in ("weight", "scales", "biases"):
        tensor = stored.get(f"{path}.{leaf}")
        if tensor is not None:
            make_part = make if leaf == "weight" else partial(packed.pieces, leaf)
            lazy[f"{path}.{leaf}"] = LazyTensor(
                tensor.dtype, tensor.shape, tensor.tensor.size_bytes, make_part
            )
    return lazy


def _check_finite(name: str, old: mx.array, new: mx.array, dtype: str) -> None:
    if not mx.isfinite(new).all().item():
        check_base_rows(name, old)
        raise OrpoError(
            f"{name} would have values that {dtype} cannot hold. Give the adapter a smaller "
            "share (--adapter FOLDER:0.5), or use --dtype float32 or bfloat16."
        )


def check_base_rows(name: str, rows: mx.array) -> None:
    """Raise OrpoError if some of a base's weight, as it is computed, is NaN or infinite."""
    if not mx.isfinite(rows).all().item():
        raise OrpoError(
            f"The base's weight {name} holds values that are NaN or infinite; nothing was written. "
            "Take another copy of the base, or convert it again."
        )


def new_rows(
    name: str, stored: Mapping[str, FileTensor], job: Job
) -> Iterator[tuple[mx.array, mx.array]]:
    """Rows of a weight before and after, float32, in order: of all its matrices."""
    tensor = stored[name]
    width = plain_shape(tensor, job.packing)[-1] if job.packing else tensor.width
    whole = any(edit.transposed for edit in job.edits)  # our rows are its columns
    count = tensor.rows if whole else rows_at_once(width)
    for matrix in range(tensor.matrices):
        for start in range(0, tensor.rows, count):
            stop = min(start + count, tensor.rows)
            old = stored_rows(name, stored, job.packing, matrix, start, stop)
            rows = old
            for edit in job.edits:
                rows = _edited(rows, edit, start, tensor.rows, matrix)
            yield old, rows


def stored_rows(
    name: str,
    stored: Mapping[str, FileTensor],
    packing: Packing | None,
    matrix: int,
    start: int,
    stop: int,
) -> mx.array:
    """Rows of one matrix of a stored weight, in float32."""
    first = matrix * stored[name].rows
    span = first + start, first + stop
    rows = stored[name].read(*span)
    if packing is None:
        return rows.astype(mx.float32)
    path = name.removesuffix(WEIGHT)
    others = _scales_of(path, stored, *span)
    scale = stored.get(f"{path}.global_scale")
    one = None if scale is None else scale.read(0, 1)[0, matrix]
    return dequantize(rows, others, packing, one)


def _scales_of(
    path: str, stored: Mapping[str, FileTensor], start: int, stop: int
) -> list[mx.array]:
    """Scales, and biases if there are, of rows of all matrices counted through."""
    names = (f"{path}.scales", f"{path}.biases")
    return [stored[name].read(start, stop) for name in names if name in stored]


def _edited(rows: mx.array, edit: Edit, start: int, total: int, matrix: int) -> mx.array:
    """The rows from number `start` of one matrix after an edit."""
    expert = matrix if edit.stacked else edit.expert
    if edit.transposed:
        turned = _edited(rows.T, edit._replace(transposed=False), 0, rows.shape[1], matrix)
        return turned.T
    begin, end, step = edit.rows.indices(total)
    before = -(-max(0, start - begin) // step)  # of the edit's own rows
    first = begin + before * step
    numbers = range(first, min(end, start + len(rows)), step)
    if not numbers:
        return rows
    here = slice(first - start, numbers[-1] - start + 1, step)
    new = apply_updates(rows[here], edit.updates, before, expert)
    if len(numbers) == len(rows):
        return new
    result = rows + 0  # a copy: what was there before is still needed
    result[here] = new
    return result
