"""Safetensors shards written tensor by tensor: one is held at a time, however large the model."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Progress
from orpo_mlx.files import write_error
from orpo_mlx.model.safetensors import INDEX, MAX_HEADER_BYTES

SHARD_BYTES = 5_000_000_000  # as Hugging Face's writer
DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "I8": mx.int8, "U16": mx.uint16, "I16": mx.int16,
    "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "I32": mx.int32, "F32": mx.float32,
    "U64": mx.uint64, "I64": mx.int64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LazyTensor(NamedTuple):
    """A tensor that is computed when its turn comes."""

    dtype: str  # as safetensors call it
    shape: tuple[int, ...]
    size_bytes: int
    make: Callable[[], memoryview | Iterator[memoryview]]  # its bytes, in one piece or several


def lazy_tensor(array: mx.array) -> LazyTensor:
    """An array of mlx, which need not be computed yet."""
    return LazyTensor(_NAMES[array.dtype], array.shape, array.nbytes, lambda: bytes_of(array))


def bytes_of(array: mx.array) -> memoryview:
    """The values of an array as a file holds them."""
    return np.asarray(mx.contiguous(array.reshape(-1)).view(mx.uint8)).data


def save_shards(
    folder: Path,
    tensors: dict[str, LazyTensor],
    *,
    layout: str,  # "mlx" or "pt", which transformers looks for
    report: Callback,
    facts: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write all tensors, with an index, and return their bytes; `tensors` is emptied on the way.

    For a single file transformers writes no index; mlx-lm does. `facts` go into the index, with
    the total size. Raises OrpoError if the disk is full.
    """
    total = sum(tensor.size_bytes for tensor in tensors.values())
    shards = _shards(tensors, shard_bytes)
    placed: dict[str, str] = {}
    done = 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        with (folder / file).open("wb") as stream:
            _write_header(stream, {name: tensors[name] for name in names}, layout)
            for name in names:
                done += _write_tensor(stream, tensors.pop(name), folder / file)
                report(Progress("Writing MB", _mb(done), _mb(total)))
        mx.clear_cache()
        placed |= dict.fromkeys(names, file)
    if layout == "mlx" or len(shards) > 1:
        metadata = {"total_size": total, **(facts or {})}
        index = {"metadata": metadata, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def save_arrays(
    folder: Path,
    arrays: dict[str, mx.array],
    *,
    layout: str,
    report: Callback,
    facts: Mapping[str, Any] | None = None,
    before: dict[str, mx.array] | None = None,
) -> int:
    """`save_shards` of arrays, computed one by one; `arrays` and `before` are emptied.

    `before` holds those that were quantized, by name: codes do not show what was not finite.

    Raises OrpoError, after the last, that names all with NaN or infinite values.
    """
    wrong: list[str] = []

    def make(name: str, array: mx.array, values: mx.array) -> memoryview:
        finite = mx.isfinite(values).all()
        mx.eval(array, finite)  # together: each value is computed once
        if mx.issubdtype(values.dtype, mx.floating) and not finite.item():
            wrong.append(f"{name} ({_NAMES[values.dtype]})")
        return bytes_of(array)

    before = {} if before is None else before
    lazy = {
        name: lazy_tensor(array)._replace(make=partial(make, name, array, before.get(name, array)))
        for name, array in arrays.items()
    }
    arrays.clear()
    before.clear()
    size = save_shards(folder, lazy, layout=layout, report=report, facts=facts)
    if wrong:
        raise _not_finite(wrong)
    return size


def _not_finite(wrong: list[str]) -> OrpoError:
    """The error for tensors with NaN or infinite values, each with its type."""
    heading = "These weights would be written with NaN or infinite values:"
    advice = "The base itself is damaged: take another copy of it."
    if any(name.endswith("(F16)") for name in wrong):
        advice = (
            "Give --dtype bfloat16 or float32, which hold larger values than float16. If that does "
            "not help, the base itself is damaged: take another copy of it."
        )
    return OrpoError(f"{collected(heading, wrong)}\n{advice}")


def _mb(size_bytes: int) -> int:
    return -(-size_bytes // 1_000_000)


def _shards(tensors: Mapping[str, LazyTensor], limit: int) -> list[list[str]]:
    """Names by shard; a tensor larger than the limit has one of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.size_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.size_bytes
    return shards


def _write_header(stream: BinaryIO, tensors: Mapping[str, LazyTensor], layout: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": layout}}
    start = 0
    for name, (dtype, shape, size, _) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise OrpoError(f"{len(tensors):,} tensors do not fit into a safetensors header.")
    stream.write(len(text).to_bytes(8, "little") + text)


def _write_tensor(stream: BinaryIO, tensor: LazyTensor, file: Path) -> int:
    made = tensor.make()
    written = 0
    try:
        for piece in [made] if isinstance(made, memoryview) else made:
            written += stream.write(piece)
    except OSError as error:
        raise write_error(file, error) from error
    if written != tensor.size_bytes:
        raise OrpoError(f"{file}: a tensor is {written:,} bytes, not {tensor.size_bytes:,}.")
    return written
