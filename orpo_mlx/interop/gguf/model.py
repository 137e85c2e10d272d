"""A base, or a base with an adapter in its weights, as one GGUF file that llama.cpp runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.errors import collected
from orpo_mlx.events import Callback
from orpo_mlx.interop.gguf.metadata import model_facts, rope_factors
from orpo_mlx.interop.gguf.names import Architecture, Names, architecture_of, heads_of, in_pairs
from orpo_mlx.interop.gguf.tokenizer import tokenizer_facts
from orpo_mlx.interop.gguf.writer import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    Tensor,
    kind_of,
    write_gguf,
)
from orpo_mlx.model.adapters import Adapter, put_onto
from orpo_mlx.model.base import load_weights
from orpo_mlx.model.mlx_lm_api import dequantize_model

ADAPTER, BASE, MODEL = "adapter.gguf", "base.gguf", "model.gguf"


def save_model_gguf(
    file: Path,
    source: Path,
    name: str,
    adapter: Adapter | None,
    tokenizer: Any,
    options: ExportConfig,
    emit: Callback,
) -> None:
    """Write the model in `source`, with the adapter fused if there is one.

    Weights are read, fused in float32 and written one after the other. Raises OrpoError for a
    model or a tokenizer that GGUF cannot say.
    """
    model, config, _ = load_weights(
        source, name, trust_remote_code=options.trust_remote_code, lazy=True
    )
    architecture = architecture_of(config, adapter=False)
    outtype = options.outtype or "f16"
    facts: dict[str, Any] = {"general.type": "model", "general.name": Path(name).name}
    facts |= {"general.file_type": FILE_TYPES[outtype]}
    facts |= {"general.quantization_version": QUANTIZATION_VERSION}
    facts |= model_facts(model.args, config, architecture)
    facts |= tokenizer_facts(tokenizer, model.args.vocab_size)
    fuse(model, adapter)
    tensors = model_tensors(model, config, architecture, outtype)
    if (factors := rope_factors(model.args)) is not None:
        tensors["rope_freqs.weight"] = Tensor(factors.shape, "f32", lambda: factors)
    write_gguf(file, architecture.name, facts, tensors, emit)


def fuse(model: nn.Module, adapter: Adapter | None) -> None:
    """Put the adapter into float32 weights, no longer quantized; nothing is computed yet."""
    model.set_dtype(mx.float32)
    if adapter is not None:
        put_onto(model, adapter)
        fused = [
            (path, module.fuse(dequantize=True))
            for path, module in model.named_modules()
            if "lora_a" in module
        ]
        model.update_modules(tree_unflatten(fused))
        model.set_dtype(mx.float32)  # an adapter's own type is not the base's
    dequantize_model(model)


def model_tensors(
    model: nn.Module, config: dict[str, Any], architecture: Architecture, outtype: str
) -> dict[str, Tensor]:
    """The weights by GGUF name, made when they are written; the model is emptied."""
    names = Names(architecture, config["num_hidden_layers"])
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    for parameter, value in tree_flatten(model.parameters()):
        if (name := names.find(parameter)) is None:
            problems.append(f"{parameter}: llama.cpp has no name for it")
            continue
        heads = heads_of(name, config) if architecture.pairs else None
        tensors[name] = Tensor(
            value.shape, kind_of(name, value.shape, outtype), _maker(value, heads)
        )
    if problems:
        raise collected("--to gguf: the model has weights that GGUF cannot say:", problems)
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    return tensors


def _maker(value: mx.array, heads: int | None) -> Callable[[], np.ndarray]:
    """Computes the weight, once, and lets go of it."""
    held = [value]

    def make() -> np.ndarray:
        rows = np.array(held.pop().astype(mx.float32))
        return in_pairs(rows, heads) if heads else rows

    return make
