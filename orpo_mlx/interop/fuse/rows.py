"""Stored tensors read some rows at a time, so that no tensor has to fit into memory."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.checkpoint.shards import DTYPES
from orpo_mlx.model.safetensors import DTYPE_BYTES, StoredTensor, find_shards

PIECE_BYTES = 4_000_000  # of a tensor that is copied


class FileTensor(NamedTuple):
    """A tensor and its file; seen as matrices of `rows` by `width`, one below the other."""

    file: Path
    tensor: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def width(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def matrices(self) -> int:
        return math.prod(self.shape[:-2])

    def read(self, start: int, stop: int) -> mx.array:
        """Rows of all matrices counted through, (stop - start, width)."""
        row_bytes = self.width * DTYPE_BYTES[self.dtype]
        data = _read(self.file, self.tensor.start + start * row_bytes, (stop - start) * row_bytes)
        return mx.array(data).view(DTYPES[self.dtype]).reshape(stop - start, self.width)

    def pieces(self) -> Iterator[memoryview]:
        """The tensor's bytes."""
        for offset in range(self.tensor.start, self.tensor.stop, PIECE_BYTES):
            yield _read(self.file, offset, min(PIECE_BYTES, self.tensor.stop - offset)).data


def stored_tensors(folder: Path) -> dict[str, FileTensor]:
    """The tensors of a model folder by name, in the order of its files; raises OrpoError."""
    shards = find_shards(folder)
    named = {
        name: FileTensor(file, shards.headers[file][name]) for name, file in shards.files.items()
    }
    order = sorted(named, key=lambda name: (named[name].file, named[name].tensor.start))
    return {name: named[name] for name in order}


def _read(file: Path, offset: int, count: int) -> np.ndarray:
    try:
        data = np.fromfile(file, np.uint8, count, offset=offset)
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror or error}.") from error
    if len(data) != count:
        raise OrpoError(f"{file} became shorter while it was read.")
    return data
