"""A base, or a base with an adapter in its weights, as one GGUF file that llama.cpp runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.errors import collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.interop.checkpoint.layout import plain_parameters
from orpo_mlx.interop.gguf.metadata import model_facts, rope_factors
from orpo_mlx.interop.gguf.names import Architecture, Names, architecture_of, heads_of, in_pairs
from orpo_mlx.interop.gguf.tokenizer import tokenizer_facts
from orpo_mlx.interop.gguf.writer import (
    FILE_TYPES,
    QUANTIZATION_VERSION,
    GgufTensor,
    tensor_type,
    write_gguf,
)
from orpo_mlx.model.adapters import Adapter
from orpo_mlx.model.base import load_weights
from orpo_mlx.model.updates import Update, fused_rows, updates_of
from orpo_mlx.review.run_summary import hub_name

GGUF_ADAPTER, BASE, GGUF_MODEL = "adapter.gguf", "base.gguf", "model.gguf"


def save_model_gguf(
    file: Path,
    source: Path,
    name: str,
    adapter: Adapter | None,
    tokenizer: Any,
    options: ExportConfig,
    report: Callback,
) -> None:
    """Write the model in `source`, with the adapter fused if there is one.

    Weights are read, fused in float32 and written one after the other. Raises OrpoError for a
    model or a tokenizer that GGUF cannot hold.
    """
    model, config, notices = load_weights(
        source, name, trust_remote_code=options.trust_remote_code, lazy=True
    )
    for text in notices:
        report(Notice(text))
    architecture = architecture_of(config, adapter=False)
    outtype = options.outtype or "f16"
    facts: dict[str, Any] = {"general.type": "model", "general.name": Path(hub_name(name)).name}
    facts |= {"general.file_type": FILE_TYPES[outtype]}
    facts |= {"general.quantization_version": QUANTIZATION_VERSION}
    facts |= model_facts(model.args, config, architecture)
    facts |= tokenizer_facts(tokenizer, model.args.vocab_size)
    tensors = model_tensors(model, adapter, config, architecture, outtype)
    if (factors := rope_factors(model.args)) is not None:
        tensors["rope_freqs.weight"] = GgufTensor(factors.shape, "f32", lambda: factors)
    write_gguf(file, architecture.name, facts, tensors, report)


def model_tensors(
    model: nn.Module,
    adapter: Adapter | None,
    config: dict[str, Any],
    architecture: Architecture,
    outtype: str,
) -> dict[str, GgufTensor]:
    """The weights by GGUF name, fused when they are written; the model is emptied."""
    names = Names(architecture, config["num_hidden_layers"])
    problems: list[str] = []
    tensors: dict[str, GgufTensor] = {}
    values = plain_parameters(model, mx.float32)
    order = [name for name, _ in tree_flatten(model.parameters()) if name in values]
    updates = updates_of(model, adapter, 1.0) if adapter else {}
    for parameter in order:
        value = values.pop(parameter)
        if (name := names.find(parameter)) is None:
            problems.append(f"{parameter}: llama.cpp has no name for it")
            continue
        heads = heads_of(name, config) if architecture.pairs else None
        make = _maker(value, updates.get(parameter), heads)
        tensors[name] = GgufTensor(value.shape, tensor_type(name, value.shape, outtype), make)
    if problems:
        raise collected("--to gguf: llama.cpp has no names for these weights:", problems)
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    return tensors


def _fused(base: mx.array, update: Update) -> np.ndarray:
    rows = [np.array(some) for some in fused_rows(base, [update])]
    return np.concatenate(rows).reshape(base.shape)


def _maker(value: mx.array, update: Update | None, heads: int | None) -> Callable[[], np.ndarray]:
    """Computes the weight, once, and lets go of it."""
    held = [value]

    def make() -> np.ndarray:
        base = held.pop()
        weight = np.array(base.astype(mx.float32)) if update is None else _fused(base, update)
        return in_pairs(weight, heads) if heads else weight

    return make
