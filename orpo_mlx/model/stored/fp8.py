"""FP8 weights of Hugging Face checkpoints, decoded before a model's own code reads their bytes.

mlx hands them over as uint8, which some of mlx-lm's models decode, some multiply by the scale.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from orpo_mlx.errors import collected
from orpo_mlx.model.safetensors import StoredTensor

FP8, BYTES = "F8_E4M3", ("U8", "F8_E8M0")
SCALE = "_scale_inv"
OF_ACTIVATIONS = ("activation_scale", "input_scale")  # nothing is rounded to FP8 here
BLOCK = (128, 128)
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
STORED_DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}
Tensors = dict[str, mx.array]


class Fp8Weight(NamedTuple):
    """A weight in FP8 and its scale."""

    name: str
    scale: str  # of W = FP8 * scale; "": the numbers are the weights
    exponents: bool  # the scale's bytes are exponents of 2
    block: tuple[int, int]  # rows and columns with one scale; (0, 0): it broadcasts
    dtype: mx.Dtype  # of the decoded weight


class Fp8(NamedTuple):
    """The weights to decode, and what is not needed afterwards."""

    weights: list[Fp8Weight]
    unused: set[str]

    def decode(self, tensors: Tensors) -> Tensors:
        """The tensors with plain weights in the place of FP8 and scales; lazy."""
        made = {name: value for name, value in tensors.items() if name not in self.unused}
        return made | {w.name: _decoded(w, tensors) for w in self.weights}


def find_fp8(stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Fp8:
    """What to decode; `quantization_config` is what the checkpoint's config says of FP8, if at all.

    Raises OrpoError with all weights whose scale is not understood.
    """
    weights, problems = [], []
    scales = _scale_names(stored)
    for name, tensor in stored.items():
        scale = name + SCALE if name + SCALE in stored else ""
        if tensor.dtype != FP8 and not scale:
            continue
        if why := _problem(name, scale, stored, scales, config):
            problems.append(f"{name}: {why}")
            continue
        block = _block(tensor.shape, stored.get(scale), config)
        if block is None:
            problems.append(f"{name}: scales {stored[scale].shape} for weights {tensor.shape}")
            continue
        exponents = bool(scale) and stored[scale].dtype in BYTES
        dtype = _dtype(config, stored.get(scale))
        weights.append(Fp8Weight(name, scale, exponents, block, dtype))
    if problems:
        heading = "FP8 weights that cannot be decoded. Take the original in 16 bits:"
        raise collected(heading, problems)
    unused = {w.scale for w in weights} - {""}
    if weights:
        unused |= {name for name in stored if name.endswith(OF_ACTIVATIONS)}
    return Fp8(weights, unused)


def _scale_names(stored: Mapping[str, StoredTensor]) -> dict[str, list[str]]:
    """The names of scales of weights, of other tools too, by the module's path."""
    names = defaultdict(list)
    for name in stored:
        path, _, leaf = name.rpartition(".")
        if "scale" in leaf and not name.endswith(OF_ACTIVATIONS):
            names[path].append(name)
    return names


def _problem(
    name: str,
    scale: str,
    stored: Mapping[str, StoredTensor],
    scales: Mapping[str, list[str]],
    config: Mapping[str, Any],
) -> str:
    """Why a weight cannot be decoded, or ""."""
    dtype = stored[name].dtype
    if scale:
        good = dtype in (FP8, "U8")
        return "" if good else f"its type is {dtype}, but it has a scale of FP8 ({scale})"
    path, _, leaf = name.rpartition(".")
    others = [n for n in scales.get(path, ()) if leaf == "weight" or n.startswith(name)]
    if others:
        return f"its scale {others[0]} is not read (read: {name}{SCALE})"
    return f"it has no {name}{SCALE}" if _quantization(config) else ""


def _block(
    shape: tuple[int, ...], scale: StoredTensor | None, config: Mapping[str, Any]
) -> tuple[int, int] | None:
    """How many rows and columns share a scale; None if the two shapes do not fit each other."""
    if scale is None:
        return 0, 0
    grid = scale.shape
    if _broadcasts(grid, shape):
        return 0, 0
    if len(shape) < 2 or len(grid) != len(shape) or grid[:-2] != shape[:-2]:
        return None
    rows, columns = _quantization(config).get("weight_block_size") or BLOCK
    fits = grid[-2:] == (-(-shape[-2] // rows), -(-shape[-1] // columns))
    return (rows, columns) if fits else None


def _broadcasts(grid: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a scale is of all weights, or of an expert, or of a row."""
    if math.prod(grid) == 1:
        return len(grid) <= len(shape)
    same = len(grid) == len(shape) and grid[-1] == 1
    return same and all(g in (1, s) for g, s in zip(grid, shape, strict=True))


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("quantization_config") or {}


def _dtype(config: Mapping[str, Any], scale: StoredTensor | None) -> mx.Dtype:
    """The config's type, else that of the scale, else bfloat16: as transformers decodes."""
    parts = (config, config.get("text_config") or {})
    named = [part.get(key) for part in parts for key in ("dtype", "torch_dtype")]
    given = next((DTYPES[n] for n in named if n in DTYPES), None)
    return given or STORED_DTYPES.get(scale.dtype if scale else "", mx.bfloat16)


def _decoded(weight: Fp8Weight, tensors: Tensors) -> mx.array:
    """The weight in float32, then in its type."""
    value = mx.from_fp8(tensors[weight.name], dtype=mx.float32)
    if not weight.scale:
        return value.astype(weight.dtype)
    scale = tensors[weight.scale]
    if weight.exponents:
        scale = (scale.astype(mx.uint32) << 23).view(mx.float32)
    if all(weight.block):
        rows, columns = value.shape[-2:]
        scale = mx.repeat(scale, weight.block[0], axis=-2)[..., :rows, :]
        scale = mx.repeat(scale, weight.block[1], axis=-1)[..., :columns]
    return (value * scale.astype(mx.float32)).astype(weight.dtype)
