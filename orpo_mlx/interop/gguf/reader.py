"""The header and the tensors of a GGUF file from anywhere: every count and offset checked first.

Maps the file, so that only what is asked for is read. Knows no architecture.
Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.errors import OrpoError, collected

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9  # kinds of metadata values, as the scalars above
BLOCK_VALUES = 32  # values that share a scale

_NIBBLES = ("quants", "u1", BLOCK_VALUES // 2)  # byte i holds value i below and value 16 + i above
READABLE: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    2: np.dtype([("scale", "<f2"), _NIBBLES]),
    3: np.dtype([("scale", "<f2"), ("least", "<f2"), _NIBBLES]),
    8: np.dtype([("scale", "<f2"), ("quants", "i1", BLOCK_VALUES)]),
}
KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K"}
KINDS |= {11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16"}

# More than any model has: a damaged count must not fill the memory.
MAX_ENTRIES = 100_000  # metadata values, and tensors
MAX_ELEMENTS = 4_000_000  # of all arrays together: the largest vocabularies have 0.3 and 0.6
MAX_DEPTH = 4  # of arrays in arrays
MAX_DIMENSIONS = 4  # ggml's own
MAX_ALIGNMENT = 1 << 20


class TensorInfo(NamedTuple):
    kind: int  # a key of READABLE, or the tensor cannot be read
    shape: tuple[int, ...]  # rows first
    offset: int  # bytes from the start of the file


class GgufFile(NamedTuple):
    path: Path
    content: mmap.mmap | bytes
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file whose readable tensors all lie inside it, apart from each other.

    Raises OrpoError for anything else.
    """
    content = _map_file(path)
    if content[:4] != b"GGUF" or content[4:8] not in (b"\2\0\0\0", b"\3\0\0\0"):
        raise OrpoError(f"{path} is not a little-endian GGUF file of version 2 or 3.")
    try:
        metadata, tensors = _parse(_Cursor(content))
    except (_Damaged, UnicodeDecodeError) as error:
        raise OrpoError(f"{path} is broken: its header cannot be read ({error}).") from None
    if problems := _layout_problems(tensors, len(content)):
        raise collected(f"{path} is broken, download it again:", problems)
    return GgufFile(path, content, metadata, tensors)


def dequantize_tensor(file: GgufFile, name: str) -> np.ndarray:
    """A readable tensor in float32, each value the one that ggml's reference computes."""
    tensor = file.tensors[name]
    blocks = np.frombuffer(file.content, READABLE[tensor.kind], _blocks(tensor), tensor.offset)
    with np.errstate(all="ignore"):  # damaged scales: reported below
        values = _values(blocks)
    if not np.isfinite(values).all():
        raise OrpoError(f"{file.path} is broken: tensor {name} holds NaN or infinity.")
    return values.reshape(tensor.shape)


def _values(blocks: np.ndarray) -> np.ndarray:
    if not blocks.dtype.names:
        return blocks.astype(np.float32)
    quants, scale = blocks["quants"], blocks["scale"].astype(np.float32)[:, None]
    if quants.dtype == np.uint8:
        quants = np.concatenate([quants & 15, quants >> 4], axis=1).astype(np.int8)
        quants -= 0 if "least" in blocks.dtype.names else 8
    values = quants * scale
    if "least" in blocks.dtype.names:
        values += blocks["least"].astype(np.float32)[:, None]
    return values


class _Damaged(Exception):
    """A header with impossible values."""


class _Cursor:
    """Reads the values of a GGUF header one after the other, never past the end of the file."""

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self.content, self.offset, self.elements = content, 0, 0

    def need(self, size_bytes: int) -> None:
        if size_bytes > len(self.content) - self.offset:
            raise _Damaged(f"it ends inside a value of {size_bytes:,} bytes")

    def numbers(self, letter: str, count: int) -> list[Any]:
        size = struct.calcsize(f"<{letter}") * count
        self.need(size)
        values = struct.unpack_from(f"<{count}{letter}", self.content, self.offset)
        self.offset += size
        return list(values)

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def count(self, what: str, limit: int, least_bytes: int) -> int:
        """How many things follow, each of which takes at least so many bytes."""
        count: int = self.number("Q")
        if count > min(limit, (len(self.content) - self.offset) // least_bytes):
            raise _Damaged(f"it claims to have {count:,} {what}")
        return count

    def text(self) -> str:
        length = self.count("bytes of text", len(self.content), 1)
        start, self.offset = self.offset, self.offset + length
        return self.content[start : self.offset].decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth == MAX_DEPTH:
            raise _Damaged(f"a value of kind {kind}, {depth} arrays deep")
        return self.array(depth)

    def array(self, depth: int) -> list[Any]:
        kind = self.number("I")
        least_bytes = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else 8
        count = self.count("array elements", MAX_ELEMENTS - self.elements, least_bytes)
        self.elements += count
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], count)
        return [self.value(kind, depth + 1) for _ in range(count)]


def _map_file(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as stream:
            if path.stat().st_size == 0:
                return b""
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise OrpoError(f"{path} cannot be read: {error}.") from error


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    cursor.offset = 8
    tensor_count = cursor.count("tensors", MAX_ENTRIES, 24)
    value_count = cursor.count("metadata values", MAX_ENTRIES, 13)
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise _Damaged(f"{key[:60]!r} is given twice")
        metadata[key] = cursor.value(cursor.number("I"))
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        name = cursor.text()
        if name in tensors:
            raise _Damaged(f"tensor {name[:60]!r} is given twice")
        tensors[name] = _tensor(cursor)
    alignment = _alignment(metadata)
    start = math.ceil(cursor.offset / alignment) * alignment
    return metadata, {k: t._replace(offset=start + t.offset) for k, t in tensors.items()}


def _tensor(cursor: _Cursor) -> TensorInfo:
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Damaged(f"a tensor of {dimensions:,} dimensions")
    shape = tuple(reversed(cursor.numbers("Q", dimensions)))
    return TensorInfo(cursor.number("I"), shape, cursor.number("Q"))


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if (
        type(alignment) is not int
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise _Damaged(f"general.alignment is {alignment!r}")
    return alignment


def _layout_problems(tensors: dict[str, TensorInfo], size: int) -> list[str]:
    """What is wrong with shapes and offsets of the tensors that can be read."""
    placed = []
    problems = []
    for name, tensor in tensors.items():
        if tensor.kind not in READABLE:
            continue
        if 0 in tensor.shape or (tensor.shape[-1] % BLOCK_VALUES and READABLE[tensor.kind].names):
            problems.append(f"tensor {name} has the shape {tensor.shape}")
        elif tensor.offset + _size_bytes(tensor) > size:
            problems.append(f"it ends inside tensor {name}")
        else:
            placed.append((tensor.offset, tensor.offset + _size_bytes(tensor), name))
    placed.sort()
    for (_, stop, one), (start, _, other) in pairwise(placed):
        if start < stop:
            problems.append(f"tensors {one} and {other} overlap")
    return problems


def _blocks(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape) // (BLOCK_VALUES if READABLE[tensor.kind].names else 1)


def _size_bytes(tensor: TensorInfo) -> int:
    return _blocks(tensor) * READABLE[tensor.kind].itemsize
