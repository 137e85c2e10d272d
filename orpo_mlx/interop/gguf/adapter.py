"""`export --to gguf`: an adapter as llama.cpp and Ollama load it, next to a base or fused into it.

Source: llama.cpp, src/llama-adapter.cpp (llama_adapter_lora_init_impl).
"""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_apart, check_new_folder, replacing
from orpo_mlx.interop.checkpoint.folder import way_to_transformers
from orpo_mlx.interop.checkpoint.origins import build_skeleton
from orpo_mlx.interop.gguf.model import BASE, GGUF_ADAPTER, GGUF_MODEL, save_model_gguf
from orpo_mlx.interop.gguf.modelfile import how_to_run, render_modelfile
from orpo_mlx.interop.gguf.names import (
    GGUF_EMBEDDING,
    UNPROVEN,
    Architecture,
    Names,
    NotInGgufError,
    architecture_of,
    heads_of,
    in_pairs,
)
from orpo_mlx.interop.gguf.writer import GgufTensor, write_gguf
from orpo_mlx.model.adapters import Adapter, find_base, put_onto, read_adapter
from orpo_mlx.model.base import load_settings, model_settings
from orpo_mlx.model.tokenizer import load_chat_tokenizer
from orpo_mlx.review.run_summary import hub_name
from orpo_mlx.run_folder.lock import check_free

CONVERTER = "llama.cpp's convert_hf_to_gguf.py is for such folders; it was not run on one of ours."


class GgufExport(NamedTuple):
    """What was written."""

    output: Path
    files: list[str]
    architecture: str
    outtype: str
    tensors: int  # of the adapter; 0 if it is in the weights


def export_gguf(options: ExportConfig, report: Callback) -> GgufExport:
    """Write the adapter, or the fused model, with a Modelfile, into a new folder.

    Raises OrpoError, with all that is wrong, for what llama.cpp cannot load or would compute
    otherwise, and with another way if there is one.
    """
    check_free(options.output)
    check_new_folder(options.output, report, overwrite=options.overwrite)
    adapter = read_adapter(options.adapter)
    try:
        return _export(options, adapter, report)
    except NotInGgufError as error:
        kind = load_settings(_source(options, adapter)[1]).get("model_type", "")
        way, known = way_to_transformers(kind, options.adapter)
        after = [CONVERTER] if known else []
        raise OrpoError("\n".join([str(error), way, *after])) from None


def _source(options: ExportConfig, adapter: Adapter) -> tuple[str, Path]:
    """The base's name and its folder."""
    weights = options.fused or options.with_base
    name, _, source = find_base(adapter, options.model, options.revision, weights=weights)
    return name, source


def _export(options: ExportConfig, adapter: Adapter, report: Callback) -> GgufExport:
    with_weights = options.fused or options.with_base
    name, source = _source(options, adapter)
    called = hub_name(name)
    check_apart(options.output, "adapter", options.adapter)
    check_apart(options.output, "base", source)
    config = model_settings(source)
    architecture = architecture_of(config, adapter=not with_weights)
    tensors = {} if options.fused else adapter_tensors(adapter, config, architecture, options)
    if config["model_type"] in UNPROVEN:
        report(Notice(_unproven(config["model_type"]), warning=True))
    tokenizer = (
        load_chat_tokenizer(source, config, adapter=adapter.folder) if with_weights else None
    )
    with replacing(options.output) as folder:
        folder.mkdir()
        if tensors:
            facts = adapter_facts(adapter, called)
            write_gguf(folder / GGUF_ADAPTER, architecture.name, facts, tensors, report)
        if with_weights:
            save_model_gguf(
                folder / (GGUF_MODEL if options.fused else BASE),
                source,
                name,
                adapter if options.fused else None,
                tokenizer,
                options,
                report,
            )
        modelfile = render_modelfile(called, tokenizer, fused=options.fused)
        (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
        files = sorted(p.name for p in folder.iterdir())
    report(Notice(how_to_run(options.output, files)))
    outtype = options.outtype or ("f16" if with_weights else "f32")
    return GgufExport(options.output, files, architecture.name, outtype, len(tensors))


def adapter_facts(adapter: Adapter, base: str) -> dict[str, Any]:
    """The metadata of an adapter; llama.cpp scales by alpha / rank, and not at all by alpha 0."""
    return {
        "general.type": "adapter",
        "general.name": adapter.folder.resolve().name,
        "general.description": f"LoRA adapter of {base}, trained with ORPO by orpo-mlx",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(adapter.scale * adapter.rank),
    }


def adapter_tensors(
    adapter: Adapter, config: dict[str, Any], architecture: Architecture, options: ExportConfig
) -> dict[str, GgufTensor]:
    """The tensors by GGUF name; raises OrpoError for what a GGUF adapter cannot hold."""
    _check_kind(adapter)
    model = _fitting(adapter, config)
    names = Names(architecture, config["num_hidden_layers"])
    kind = "f16" if options.outtype == "f16" and not options.with_base else "f32"
    problems: list[str] = []
    tensors: dict[str, GgufTensor] = {}
    for path in adapter.modules:
        name = names.find(f"{path}.weight")
        if name is None:
            problems.append(f"{path}: llama.cpp has no name for it")
        elif name == GGUF_EMBEDDING and "lm_head" not in model:
            problems.append(
                f"{path}: the head shares its weights, and llama.cpp aborts on such an adapter"
            )
        else:
            for leaf, value in _factors(adapter, path, name, config, architecture.pairs).items():
                tensors[f"{name}.{leaf}"] = _tensor(value, kind)
    if problems:
        heading = f"Adapter {adapter.folder} cannot be written as a GGUF adapter:"
        raise OrpoError(f"{collected(heading, problems)}\nFuse it instead: --fused.")
    return tensors


def _check_kind(adapter: Adapter) -> None:
    reasons = {
        "dora": "GGUF has no DoRA: its magnitudes would be lost",
        "full": "it has trained weights, not an adapter",
    }
    if why := reasons.get(adapter.kind):
        raise OrpoError(f"Adapter {adapter.folder}: {why}. Fuse it instead: --fused.")
    if adapter.scale == 0:
        raise OrpoError(
            f"Adapter {adapter.folder}: its scale is 0, which llama.cpp reads as 1. "
            "It changes nothing: use the base."
        )


def _fitting(adapter: Adapter, config: dict[str, Any]) -> nn.Module:
    """The model with the adapter on it, no weights computed; raises OrpoError if it misfits."""
    model = build_skeleton(config)
    put_onto(model, adapter)
    return model


def _factors(
    adapter: Adapter, path: str, name: str, config: dict[str, Any], pairs: bool
) -> dict[str, mx.array]:
    """lora_a (r, in) and lora_b (out, r) of a module, a leading axis for experts.

    mlx keeps (in, r) and (r, out), experts as llama.cpp has them; of an embedding llama.cpp
    wants (V, r) and (D, r).
    """
    a, b = (adapter.weights[f"{path}.{leaf}"] for leaf in ("lora_a", "lora_b"))
    if a.ndim == 3:
        return {"lora_a": a, "lora_b": b}
    if name == GGUF_EMBEDDING:
        return {"lora_a": a, "lora_b": b.T}
    heads = heads_of(name, config) if pairs else None
    rows = b.T.astype(mx.float32)
    return {"lora_a": a.T, "lora_b": mx.array(in_pairs(np.array(rows), heads)) if heads else rows}


def _tensor(value: mx.array, kind: str) -> GgufTensor:
    return GgufTensor(value.shape, kind, lambda: np.array(value.astype(mx.float32)))


def _unproven(kind: str) -> str:
    return (
        f"{kind}: logits of the base differ by up to 1e-3 between llama.cpp and mlx-lm, and no "
        "test of ours runs it: compare an answer or two."
    )
