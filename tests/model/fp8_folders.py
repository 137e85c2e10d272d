"""Checkpoints with weights in FP8, written as their publishers write them, and what they mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests import tiny

Stored = dict[str, tuple[str, np.ndarray]]  # dtype in the file, the numbers as their bytes
Scales = Callable[[np.ndarray], np.ndarray]  # of float32 weights, in a shape that repeats over them


def per_tensor(weight: np.ndarray) -> np.ndarray:
    return np.array(np.abs(weight).max() / 448, np.float32)


def per_row(weight: np.ndarray) -> np.ndarray:
    return (np.abs(weight).max(axis=-1, keepdims=True) / 448).astype(np.float32)


def per_expert(weight: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, weight.ndim)) if weight.ndim > 2 else None
    return np.asarray(np.abs(weight).max(axis=axes, keepdims=True) / 448, np.float32)


def in_blocks(rows: int, columns: int) -> Scales:
    """One scale a block; the last ones may be cut."""

    def scales(weight: np.ndarray) -> np.ndarray:
        height, width = weight.shape[-2:]
        grid = np.zeros((*weight.shape[:-2], -(-height // rows), -(-width // columns)), np.float32)
        for r, c in np.ndindex(*grid.shape[-2:]):
            block = weight[..., r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
            grid[..., r, c] = np.abs(block).max(axis=(-2, -1)) / 448
        return grid

    return scales


def spread(scales: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """A scale for every weight."""
    grid = tuple(-(-size // step) for size, step in zip(shape[-2:], block, strict=True))
    if scales.shape[-2:] == grid:
        scales = scales.repeat(block[0], -2).repeat(block[1], -1)
        scales = scales[..., : shape[-2], : shape[-1]]
    return np.broadcast_to(scales, shape)


def e4m3(codes: np.ndarray) -> np.ndarray:
    """By the definition of the format: a sign, 4 bits of exponent, 3 of mantissa."""
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return np.where(codes & 128, -value, value)


def encoded(values: np.ndarray) -> np.ndarray:
    return np.array(mx.to_fp8(mx.array(values.astype(np.float32))))


def save(file: Path, tensors: Stored) -> None:
    """A safetensors file with types that mlx does not write."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, values) in tensors.items():
        raw = values.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def tensors_of(folder: Path) -> Stored:
    loaded = mx.load(str(folder / "model.safetensors"))
    assert isinstance(loaded, dict)
    return {name: ("F32", np.array(value)) for name, value in loaded.items()}


def is_layer(name: str, values: np.ndarray) -> bool:
    return (
        ".layers." in name and values.ndim > 1 and "conv" not in name and "gate.weight" not in name
    )


def save_fp8(
    folder: Path,
    family: str = "ministral3",
    scales_of: Scales = per_tensor,
    block: tuple[int, int] = (128, 128),
    *,
    exponents: bool = False,
    quantization: dict[str, Any] | None = None,
    wrapper: str = "",
    dimensions: tuple[int, ...] = (2, 3),
    **changes: Any,
) -> dict[str, np.ndarray]:
    """A tiny base whose layers are in FP8; returns what its weights are, in float64."""
    tiny.save_base(folder, family, **changes)
    stored: Stored = {}
    meant = {}
    for name, (dtype, values) in tensors_of(folder).items():
        if not is_layer(name, values) or values.ndim not in dimensions:
            stored[name], meant[name] = (dtype, values), values.astype(np.float64)
            continue
        scales = scales_of(values)
        if exponents:
            powers = np.ceil(np.log2(scales)).astype(int)
            scales = (2.0**powers).astype(np.float32)
            stored[f"{name}_scale_inv"] = "F8_E8M0", (powers + 127).astype(np.uint8)
        else:
            stored[f"{name}_scale_inv"] = "F32", scales
        codes = encoded(values / spread(scales, values.shape, block))
        stored[name] = "F8_E4M3", codes
        if quantization is None:
            scale = f"{name.removesuffix('weight')}activation_scale"
            stored[scale] = "F32", np.array(1, np.float32)
        meant[name] = e4m3(codes) * spread(scales, values.shape, block).astype(np.float64)
    for file in folder.glob("model*"):
        file.unlink()
    save(folder / "model.safetensors", stored)
    given = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    change_config(folder, quantization_config=quantization or given)
    return _wrapped(folder, wrapper, stored, meant) if wrapper else meant


def _wrapped(
    folder: Path, wrapper: str, stored: Stored, meant: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same as the text part of a multimodal model."""
    text = json.loads((folder / "config.json").read_text())
    given = text.pop("quantization_config")
    config = {"model_type": wrapper, "text_config": text, "quantization_config": given}
    (folder / "config.json").write_text(json.dumps(config))
    save(folder / "model.safetensors", {f"language_model.{n}": v for n, v in stored.items()})
    return {f"language_model.{name}": values for name, values in meant.items()}
