"""A GGUF file, written tensor by tensor. Knows nothing of models.

Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Progress
from orpo_mlx.extras import import_extra
from orpo_mlx.files import check_room
from orpo_mlx.interop.gguf.reader import BLOCK_VALUES

FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.h: enum llama_ftype
QUANTIZATION_VERSION = 2
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / BLOCK_VALUES}  # of a value
_FLOAT16_MAX = 65504.0


class GgufTensor(NamedTuple):
    """A tensor to be written; `make` gives it in float32 when its turn comes."""

    shape: tuple[int, ...]  # rows first
    kind: str  # a key of FILE_TYPES
    make: Callable[[], np.ndarray]

    @property
    def size_bytes(self) -> int:
        return int(math.prod(self.shape) * _BYTES[self.kind])


def tensor_type(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """The type of a weight: llama.cpp wants vectors and routers in float32."""
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % BLOCK_VALUES else wanted


def write_gguf(
    file: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: dict[str, GgufTensor],
    report: Callback,
) -> None:
    """Write metadata and tensors, one in memory at a time.

    Raises OrpoError if the disk has no room, or a value does not fit its type.
    """
    gguf = import_extra("gguf", "gguf")
    check_room(file.parent, sum(t.size_bytes for t in tensors.values()))
    writer = gguf.GGUFWriter(None, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    kinds = {k: gguf.GGMLQuantizationType[k.upper()] for k in FILE_TYPES}
    for name, t in tensors.items():
        writer.add_tensor_info(name, t.shape, np.dtype("f4"), t.size_bytes, kinds[t.kind])
    writer.write_header_to_file(file)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, t) in enumerate(tensors.items()):
            report(Progress(f"Writing {file.name}", done, len(tensors)))
            writer.write_tensor_data(_stored(name, t, gguf))
        report(Progress(f"Writing {file.name}", len(tensors), len(tensors)))
    finally:
        writer.close()


def _stored(name: str, tensor: GgufTensor, gguf: Any) -> np.ndarray:
    """The values as the file has them; q8_0 as bytes."""
    value = np.ascontiguousarray(tensor.make(), np.float32)
    if tensor.kind == "f32":
        return value
    if (largest := float(np.abs(value).max(initial=0.0))) > _FLOAT16_MAX:
        raise OrpoError(
            f"{name} has a value of {largest:.4g}, more than float16 can hold: use --outtype f32."
        )
    if tensor.kind == "f16":
        return value.astype(np.float16)
    quantized: np.ndarray = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
    return quantized


def _add(writer: Any, key: str, value: Any) -> None:
    """A metadata value in the type that llama.cpp asks for."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
