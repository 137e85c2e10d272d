"""The one float32 folder and the one adapter that all contestants load."""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from benchmarks.arithmetic import Dimensions
from benchmarks.bench import RandomBase
from orpo_mlx.errors import OrpoError
from orpo_mlx.model import lora
from orpo_mlx.model.base import load_base, load_weights
from orpo_mlx.model.mlx_lm_api import get_classes, save_config, save_model

HEAD_DIM = 64
# B as large as after some training: the adapter must show in the loss.
B_SCALE = 0.01


class WrittenAdapter(NamedTuple):
    """Where the adapter is, and what a tool needs to attach one like it."""

    file: Path
    keys: list[str]  # names below a block
    num_layers: int  # the last blocks
    parameters: int


def write_base(model: str, target: Path) -> dict[str, Any]:
    """Write a base in float32, whatever its stored type; returns its config."""
    base = load_base(model, keep_quantized=False)
    config = {k: v for k, v in base.config.items() if not k.startswith("quantization")}
    return _write(base.model, {**config, "dtype": "float32", "torch_dtype": "float32"}, target)


def write_random_base(size: RandomBase, target: Path) -> dict[str, Any]:
    """Write a random llama or qwen3_5 in float32; returns its config."""
    if size.hidden % HEAD_DIM:
        raise OrpoError(f"--hidden {size.hidden}: must be a multiple of {HEAD_DIM}.")
    config = random_config(size)
    mx.random.seed(0)
    model_class, arguments = get_classes(config)
    return _write(model_class(arguments.from_dict(config)), config, target)


def random_config(size: RandomBase) -> dict[str, Any]:
    """The config of a random base; of qwen3_5, three of four layers have gated delta."""
    heads = size.hidden // HEAD_DIM
    config = {
        "model_type": size.kind,
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "intermediate_size": 64 * round(size.hidden * 8 / 3 / 64),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": True,
    }
    if size.kind == "llama":
        return config
    config |= {
        "intermediate_size": 3 * size.hidden,
        "full_attention_interval": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": size.value_heads,
        "linear_key_head_dim": HEAD_DIM,
        "linear_value_head_dim": HEAD_DIM,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
        },
    }
    text = config | {"model_type": f"{size.kind}_text"}
    return {"model_type": size.kind, "vocab_size": size.vocabulary, "text_config": text}


def write_adapter(folder: Path, file: Path, *, num_layers: int, rank: int) -> WrittenAdapter:
    """Write an adapter with random A and B for all linear layers of the last blocks."""
    model, _, _ = load_weights(folder, str(folder))
    targets = lora.find_targets(model, [lora.ALL_LINEAR], num_layers)
    mx.random.seed(0)
    lora.attach(model, targets, kind="lora", rank=rank, scale=1.0, dropout=0.0, bits={})
    weights = {
        name: B_SCALE * mx.random.normal(v.shape) if name.endswith("lora_b") else v
        for name, v in tree_flatten(model.trainable_parameters())
    }
    mx.save_safetensors(str(file), weights)
    size = sum(v.size for v in weights.values())
    return WrittenAdapter(file, targets.keys, targets.num_layers, size)


def dimensions(config: dict[str, Any], adapter: WrittenAdapter) -> Dimensions | None:
    """What the arithmetic is counted from; None for a base with recurrent layers.

    Raises OrpoError for a base that is not dense.
    """
    if "linear_num_value_heads" in config.get("text_config", config):
        return None
    if missing := {"intermediate_size", "num_attention_heads"} - {*config}:
        raise OrpoError(f"Arithmetic is counted for dense text models only (no {min(missing)}).")
    if any("expert" in key for key in config):
        raise OrpoError("Arithmetic is counted for dense text models only, not for experts.")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    pairs = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * head_dim * (heads + pairs)
    return Dimensions(
        layers=config["num_hidden_layers"],
        trained_layers=adapter.num_layers,
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        linear=attention + 3 * hidden * config["intermediate_size"],
        adapter=adapter.parameters // max(adapter.num_layers, 1),
    )


def _write(model: Any, config: dict[str, Any], target: Path) -> dict[str, Any]:
    target.mkdir()
    model.set_dtype(mx.float32)
    save_model(target, model)
    save_config(dict(config), target / "config.json")
    return config
