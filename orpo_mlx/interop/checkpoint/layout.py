"""An MLX model's weights under the names and in the layout of a Hugging Face checkpoint.

The inverse of the model's own `sanitize`, by what origins.py learns from it. Lazy: tensors are
dequantized, joined and split when they are written.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.interop.checkpoint.origins import Origin, trace_origins
from orpo_mlx.model.dequantize import plain_weight, usual_dtype
from orpo_mlx.model.safetensors import StoredTensor

PACKED = ("_blocks", "_scales")  # how gpt_oss stores experts in MXFP4
_QUANTIZED_PARTS = ("weight", "scales", "biases", "global_scale")  # of a quantized module


def plain_parameters(model: nn.Module, dtype: mx.Dtype | None = None) -> dict[str, mx.array]:
    """Every parameter by path, dequantized, in `dtype` or as the scales and values are stored.

    Raises OrpoError for weights that are packed in another way.
    """
    parameters = dict(tree_flatten(model.parameters()))
    usual = _usual_dtype(parameters)
    for path, module in model.named_modules():
        if "scales" in module:
            for name in _QUANTIZED_PARTS:
                parameters.pop(f"{path}.{name}", None)
            # In float32, which loses nothing, if a type was asked for: it is cast later.
            made = mx.float32 if dtype else usual_dtype(module, usual)
            parameters[f"{path}.weight"] = plain_weight(module, made)
    packed = [n for n, v in parameters.items() if not mx.issubdtype(v.dtype, mx.floating)]
    if packed:
        raise collected("mlx-lm cannot dequantize these weights:", packed)
    kept = getattr(model, "cast_predicate", lambda _: True)
    if dtype is None:
        return parameters
    return {n: v.astype(dtype) if kept(n) else v for n, v in parameters.items()}


def checkpoint_tensors(
    parameters: Mapping[str, mx.array],
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor] | None = None,
) -> Iterator[tuple[str, mx.array]]:
    """The tensors of the checkpoint, by name: `sanitize` makes `parameters` of them.

    `stored` are the tensors of the folder that the model was loaded from. Raises OrpoError, with
    their names, for parameters that `sanitize` computes.
    """
    origins = trace_origins(config, stored)
    if lost := sorted(parameters.keys() - origins.keys()):
        raise collected("A Hugging Face checkpoint has no tensors for these parameters:", lost)
    pieces = defaultdict(list)
    for path, origin in origins.items():
        if path in parameters:
            for name, value in _unstacked(origin, parameters[path]):
                pieces[name].append((origin.rows, value))
    if packed := sorted(name for name in pieces if name.endswith(PACKED)):
        raise collected(
            f"mlx-lm reads a model of type {config.get('model_type')} only in MXFP4: a plain one "
            "would not load again. These tensors cannot be written plain:",
            packed,
        )
    for name, parts in pieces.items():
        yield name, _joined(name, parts)


def _unstacked(origin: Origin, value: mx.array) -> Iterator[tuple[str, mx.array]]:
    """The tensors that one parameter is stacked of, each as it is stored."""
    if origin.transposed:
        value = value.swapaxes(-1, -2)
    if len(origin.names) == 1:
        yield origin.names[0], value
        return
    for index, name in enumerate(origin.names):
        yield name, value[index]


def _joined(name: str, parts: list[tuple[slice | None, mx.array]]) -> mx.array:
    """One stored tensor of the rows that parameters hold of it, side by side or interleaved."""
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    value = parts[0][1]
    axis = value.ndim - 1 if name.endswith("bias") else 1 if value.ndim > 2 else 0
    positions = np.concatenate([_row_numbers(rows, value.shape[axis]) for rows, value in parts])
    if not np.array_equal(np.sort(positions), np.arange(len(positions))):
        raise OrpoError(f"{name}: the parameters of the model do not hold all of its rows.")
    joined = mx.concatenate([value for _, value in parts], axis=axis)
    order = np.argsort(positions)
    in_order = np.array_equal(order, np.arange(len(order)))
    return joined if in_order else mx.take(joined, mx.array(order), axis=axis)


def _row_numbers(rows: slice | None, count: int) -> np.ndarray:
    return np.arange(count) if rows is None else np.arange(rows.start, rows.stop, rows.step)


def _usual_dtype(parameters: Mapping[str, mx.array]) -> mx.Dtype:
    """The type of most floating-point values that are not quantized; bfloat16 if there are none."""
    counts: dict[mx.Dtype, int] = defaultdict(int)
    for value in parameters.values():
        if mx.issubdtype(value.dtype, mx.floating):
            counts[value.dtype] += value.size
    return max(counts, key=lambda d: counts[d], default=mx.bfloat16)
