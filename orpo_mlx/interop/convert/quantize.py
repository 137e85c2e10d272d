"""Weights quantized by mlx-lm's own functions; what it would skip silently is refused or reported.

Reads no values: all of them are still lazy afterwards.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from orpo_mlx.config.interop import QUANTIZATION, ConvertConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.model.mlx_lm_api import mixed_quant_predicate_builder, quantize_model

Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]
DTYPES = ("float16", "bfloat16", "float32")


def quantize(
    model: nn.Module, config: dict[str, Any], options: ConvertConfig
) -> tuple[nn.Module, dict[str, Any], list[str], dict[str, mx.array]]:
    """The quantized model, its config, sentences for the user, and the weights before, by name.

    Raises OrpoError if nothing is left to quantize, or if another group size fits where the
    asked one does not.
    """
    mode = options.mode or "affine"
    sizes, bits = QUANTIZATION[mode]
    group_size = options.group_size or sizes[0]
    predicate = _predicate(model, options, group_size)
    notices = [*_quantized_already(model, options), *_left_out(model, predicate, sizes, group_size)]
    # With a recipe the config's first line has its lower bits, each module its own.
    low_bits = int(options.recipe.split("_")[1]) if options.recipe else options.bits or bits[0]
    modules = model.named_modules()
    plain = {path: module.weight for path, module in modules if hasattr(module, "to_quantized")}
    try:
        with redirect_stdout(io.StringIO()):  # bits per weight, which the command reports
            model, config = quantize_model(
                model, config, group_size, low_bits, mode=mode, quant_predicate=predicate
            )
    except ValueError as error:
        raise OrpoError(f"{options.source} cannot be quantized like this: {error}") from error
    quantized = {path for path, module in model.named_modules() if "scales" in module}
    before = {f"{path}.weight": plain[path] for path in plain.keys() & quantized}
    return model, config, notices, before


def cast_parameters(model: nn.Module, config: dict[str, Any], asked: str | None) -> None:
    """Floating-point parameters in the type asked for, else the config's, as mlx-lm casts them."""
    text = config.get("text_config") or {}
    stored_types = [c.get(key) for c in (config, text) for key in ("torch_dtype", "dtype")]
    name = asked or next((n for n in stored_types if n in DTYPES), None)
    if name is None:
        return
    dtype = getattr(mx, name)
    # Some models keep a few parameters as they are (deepseek_v3: the router's correction).
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def to_dtype(path: str, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(dtype) if floating and wanted(path) else value

    model.update(tree_map_with_path(to_dtype, model.parameters()))
    for part in (config, text):
        for key in ("torch_dtype", "dtype"):
            if key in part:
                part[key] = name


def _predicate(model: nn.Module, options: ConvertConfig, group_size: int) -> Predicate | None:
    if not options.recipe:
        return getattr(model, "quant_predicate", None)
    try:
        return mixed_quant_predicate_builder(options.recipe, model, group_size)
    except ValueError:
        raise OrpoError(
            f"--recipe {options.recipe}: mlx-lm mixes only where layers have a down_proj, "
            f"{options.source} has none. Give --bits instead."
        ) from None


def _quantized_already(model: nn.Module, options: ConvertConfig) -> list[str]:
    bits = sorted({m.bits for _, m in model.named_modules() if "scales" in m})
    if not bits:
        return []
    state = f"quantized already ({' and '.join(map(str, bits))} bits)"
    if not _layers(model, getattr(model, "quant_predicate", None)):
        raise OrpoError(
            f"{options.source} is {state}. Convert the original, or undo it first: "
            f"orpo-mlx convert {options.source} --dequantize --output FOLDER"
        )
    return [f"What is {state} in {options.source} stays as it is."]


def _layers(model: nn.Module, predicate: Predicate | None) -> dict[str, tuple[int, Any]]:
    """Path of each module that would be quantized -> the length of its rows, and how."""
    layers = {}
    for path, module in model.named_modules():
        # mlx-lm's own question, whatever the class
        if hasattr(module, "to_quantized") and (
            wanted := predicate(path, module) if predicate else True
        ):
            layers[path] = (module.weight.shape[-1], wanted)
    return layers


def _left_out(
    model: nn.Module, predicate: Predicate | None, sizes: tuple[int, ...], group_size: int
) -> list[str]:
    """Layers whose rows no group size divides; raises OrpoError if another size would do."""
    layers = _layers(model, predicate)
    uneven = {path: length for path, (length, _) in layers.items() if length % group_size}
    fixed = {
        path: (length, wanted["group_size"])
        for path, (length, wanted) in layers.items()
        if isinstance(wanted, Mapping) and path not in uneven and length % wanted["group_size"]
    }
    better = [s for s in sorted(sizes) if any(length % s == 0 for length in uneven.values())]
    problems = [
        f"{path}: mlx-lm stores it in groups of {size}, its rows have {length} weights"
        for path, (length, size) in fixed.items()
    ]
    if better or len(uneven) == len(layers):
        allowed = f"allowed: {', '.join(map(str, better))}" if better else "none divides them"
        problems += [f"{p}: its rows have {n} weights ({allowed})" for p, n in uneven.items()]
    if problems:
        raise collected(f"Groups of {group_size} (--group-size) do not fit:", problems)
    if not uneven:
        return []
    first, length = next(iter(uneven.items()))
    count = f"{len(uneven)} layer{'s' * (len(uneven) != 1)}"
    return [f"{count} stay as they are (first {first}): no group size divides rows of {length}."]
