"""A plain Hugging Face folder of an MLX model, which transformers loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.interop.checkpoint.layout import checkpoint_tensors, plain_parameters
from orpo_mlx.interop.checkpoint.module_map import causal_class
from orpo_mlx.interop.checkpoint.shards import save_arrays
from orpo_mlx.interop.checkpoint.sidecar import copy_sidecar
from orpo_mlx.interop.checkpoint.transformers_rules import check_plain_names
from orpo_mlx.model.mlx_lm_api import get_classes, save_config
from orpo_mlx.model.safetensors import StoredTensor

DTYPES = {mx.float32: "float32", mx.bfloat16: "bfloat16", mx.float16: "float16"}
# Tried in both directions: names, values and transformers' logits (tests/parity/test_hf_layout.py).
PROVEN = (
    "llama", "mistral", "ministral3", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "gemma2", "gemma3_text", "phi", "phi3", "cohere2", "granite", "granitemoe", "olmo2", "olmo3",
    "olmoe", "smollm3", "glm4", "glm4_moe", "starcoder2", "lfm2", "mamba2", "stablelm", "seed_oss",
    "ernie4_5", "hunyuan_v1_dense", "helium", "nemotron", "afmoe",
)  # fmt: skip
# Fused from a Hugging Face folder they stay one; mlx-lm's own layout is not turned into one
# (tests/parity/test_fuse.py).
KEPT_AS_STORED = ("mistral3", "qwen3_5", "gemma3", "deepseek_v3", "qwen3_next")
# mlx-lm's `sanitize` accepts its own names, but they are not those of a checkpoint.
REFUSED = {
    "dbrx": "its checkpoint has the rows of all experts in one tensor",
    "ernie4_5_moe": "mlx-lm leaves out the router's correction",
}
TEXT_PART = "language_model."  # mlx-lm's name for what it keeps of a multimodal model


def way_to_transformers(kind: str, adapter: Path) -> tuple[str, bool]:
    """How to write base + adapter as a folder that transformers loads; False: no way is known."""
    command = f"orpo-mlx fuse --adapter {adapter}"
    if kind in PROVEN:
        return f"Write a Hugging Face folder: {command} --output FOLDER --dequantize", True
    if kind in KEPT_AS_STORED:
        original = "Fuse the adapter into the base's original Hugging Face folder, ORIGINAL: "
        return f"{original}{command} --model ORIGINAL --output FOLDER", True
    if why := (REFUSED | {"gpt_oss": "mlx-lm reads it only in MXFP4"}).get(kind):
        return f"A {kind} cannot be written as a Hugging Face folder either: {why}.", False
    return f"No test of ours writes a {kind} as a Hugging Face folder either.", False


class Plain(NamedTuple):
    """A checkpoint that is not yet computed."""

    tensors: dict[str, mx.array]
    config: dict[str, Any]


def plain_checkpoint(
    model: nn.Module,
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    dtype: str | None,
    report: Callback,
) -> Plain:
    """The tensors and the config of the checkpoint that a loaded model was; `model` is emptied.

    Raises OrpoError if the model has what no checkpoint holds.
    """
    kind = str(config.get("model_type"))
    if config.get("model_file") or kind in REFUSED:
        why = REFUSED.get(kind, "it has its own code (model_file)")
        raise OrpoError(
            f"A model of type {kind} cannot be written as a Hugging Face folder: {why}."
        )
    parameters = plain_parameters(model, None if dtype is None else getattr(mx, dtype))
    known: Mapping[str, StoredTensor] | None = stored
    if all(name.startswith(TEXT_PART) for name in parameters):
        parameters = {n.removeprefix(TEXT_PART): v for n, v in parameters.items()}
        config, known = _text_config(config), None
        _check_text_part(kind, config)
        report(Notice(f"mlx-lm keeps only the text part of {kind}: a {config['model_type']}."))
    tensors = dict(checkpoint_tensors(parameters, config, known))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    if config["model_type"] not in PROVEN:
        text = f"No test of ours loads a plain {config['model_type']} in transformers"
        report(Notice(f"{text}: check that it loads.", warning=True))
    # torch wants every tensor to begin at a multiple of its own size
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    return Plain(tensors, _plain_config(config, tensors))


def save_checkpoint_folder(plain: Plain, source: Path, folder: Path, report: Callback) -> int:
    """Write a checkpoint, which is emptied, and the files next to it in `source`.

    Returns the weights' bytes.
    """
    size = save_arrays(folder, plain.tensors, layout="pt", report=report)
    save_config(plain.config, folder / "config.json", keep_vision_config=True)
    copy_sidecar(source, folder)
    check_plain_names(folder)
    return size


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the text part, with the settings above it that apply to it too."""
    text = config.get("text_config")
    if not isinstance(text, dict) or not text.get("model_type"):
        raise OrpoError(f"config.json of type {config.get('model_type')} has no text_config.")
    above = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return {**{key: config[key] for key in above if key in config}, **text}


def _check_text_part(kind: str, config: Mapping[str, Any]) -> None:
    """Raise OrpoError if mlx-lm has no model for the text part, whose names it would show."""
    try:
        get_classes(dict(config))
    except ValueError:
        raise OrpoError(
            f"A model of type {kind} cannot be written as a Hugging Face folder: mlx-lm has no "
            f"model of type {config['model_type']}, its text part. Use the original folder."
        ) from None


def _plain_config(config: Mapping[str, Any], tensors: Mapping[str, mx.array]) -> dict[str, Any]:
    """The config without quantization, with the type of most values and the class's name."""
    plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
    sizes: dict[mx.Dtype, int] = {}
    for value in tensors.values():
        sizes[value.dtype] = sizes.get(value.dtype, 0) + value.size
    name = DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]
    plain |= {"dtype": name, "torch_dtype": name}
    if architecture := causal_class(plain["model_type"]):
        plain.setdefault("architectures", [architecture])
    return plain
