"""Safetensors files from elsewhere, checked before use: header, names, types, shapes, sizes.

Reads headers alone; `mx.load` then reads the tensors. Format: github.com/huggingface/safetensors.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError, collected

INDEX = "model.safetensors.index.json"
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2,
    "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library allows
MAX_INDEX_BYTES = 100_000_000
_NAME = re.compile(r"[^\x00-\x1f\\]{1,512}")


class StoredTensor(NamedTuple):
    """A tensor as the header of its file tells it; `start` and `stop` are bytes of the file."""

    dtype: str  # a key of DTYPE_BYTES
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises OrpoError, with all that is wrong, unless the tensors lie inside the file, one after
    the other, each as large as its type and shape say.
    """
    header, start = _header(file)
    size = file.stat().st_size - start
    tensors, problems = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensor = _tensor(entry)
        if not _NAME.fullmatch(name):
            problems.append(f"{name[:60]!r} is no name of a tensor")
        elif isinstance(tensor, str):
            problems.append(f"{name}: {tensor}")
        elif tensor.stop > size:
            problems.append(f"{name} ends {tensor.stop - size:,} bytes behind the file's end")
        else:
            tensors[name] = tensor
    if not problems:
        problems = _gaps(tensors, size)
    if problems:
        raise collected(f"{file} is damaged:", problems)
    return {n: t._replace(start=t.start + start, stop=t.stop + start) for n, t in tensors.items()}


def find_shards(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model folder, by the tensor's name.

    Follows the index where there is one. Raises OrpoError if it names what is not there, a file
    outside the folder, or if a tensor stands in two files.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed(folder, index)
    shards: dict[str, Path] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        for name in read_header(file):
            if name in shards:
                raise OrpoError(f"{folder}: tensor {name} is in {shards[name].name}, {file.name}.")
            shards[name] = file
    if not shards:
        raise OrpoError(f"{folder}: no weights: no model*.safetensors there.")
    return shards


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name, of all files that mlx-lm reads; raises OrpoError."""
    files = {*find_shards(folder).values(), *folder.glob("model*.safetensors")}
    return {name: t for file in sorted(files) for name, t in read_header(file).items()}


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON object, and where the tensors' bytes begin."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            rest = file.stat().st_size - 8
            if not 2 <= length <= min(rest, MAX_HEADER_BYTES):
                raise OrpoError(
                    f"{file} is damaged: its header would be {length:,} bytes long, "
                    f"{max(rest, 0):,} are there."
                )
            header = json.loads(stream.read(length), object_pairs_hook=_once)
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise OrpoError(f"{file} is damaged: its header is not JSON ({error}).") from None
    if not isinstance(header, dict):
        raise OrpoError(f"{file} is damaged: its header is no JSON object.")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: of two tensors of one name each reader takes another."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor(entry: Any) -> StoredTensor | str:
    """A header's entry, or what is wrong with it."""
    if not isinstance(entry, dict):
        return "its entry is no JSON object"
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"its type is {dtype!r} (allowed: {', '.join(DTYPE_BYTES)})"
    if not (_whole_numbers(shape) and _whole_numbers(offsets) and len(offsets) == 2):
        return f"its shape is {shape!r}, its place {offsets!r}"
    start, stop = offsets
    wanted = math.prod(shape) * DTYPE_BYTES[dtype]
    if stop - start != wanted:
        return f"{dtype} {tuple(shape)} takes {wanted:,} bytes, it has {stop - start:,}"
    return StoredTensor(dtype, tuple(shape), start, stop)


def _whole_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(n) is int and 0 <= n < 2**62 for n in value)
    )


def _gaps(tensors: dict[str, StoredTensor], size: int) -> list[str]:
    """Where tensors overlap, or bytes belong to none, in the order of the file."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != end:
            return [f"{name} begins at byte {tensor.start:,}, the one before it ends at {end:,}"]
        end = tensor.stop
    return [] if end == size else [f"{size - end:,} bytes at its end belong to no tensor"]


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(placed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OrpoError(f"{index} is damaged ({error}).") from None
    problems, held = [], {}
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            problems.append(f"{name!r} is no name of a file in that folder")
        elif not (folder / name).is_file():
            problems.append(f"{name} is not there")
        else:
            held[name] = set(read_header(folder / name))
    for tensor, name in placed.items():
        if name in held and tensor not in held[name]:
            problems.append(f"{name} has no tensor {tensor}")
    if problems:
        raise collected(f"{index} does not fit its folder:", problems)
    return {tensor: folder / name for tensor, name in placed.items()}
