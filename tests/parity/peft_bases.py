"""Tiny random bases that transformers and mlx-lm hold alike, and random adapters on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import save_config

from orpo_mlx.model import lora
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import load_weights
from tests import tiny
from tests.families import VOCABULARY

COMMON: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 16,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
TIED = {"tie_word_embeddings": True}
GEMMA = TIED | {"query_pre_attn_scalar": 16}
DELTA_NET: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "full_attention_interval": 3,
    "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
}
YARN_SCALE = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 512}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 16,
}
# What a family's config adds; `text_config` where the text is a part of it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mistral3": {
        "text_config": {"model_type": "mistral"}, "vision_config": VISION | {
            "model_type": "pixtral",
        },
    },
    "ministral3": {"rope_parameters": ROPE | YARN_SCALE},
    "qwen2": TIED,
    "qwen3": {},
    "qwen3_5": {
        "text_config": DELTA_NET | {
            "rope_parameters": DELTA_NET["rope_parameters"] | {"mrope_section": [2, 1, 1]},
        },
        "vision_config": {
            "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32,
            "out_hidden_size": 64, "patch_size": 14, "deepstack_visual_indexes": [],
        },
    },
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": ROPE, "full_attention": ROPE | {"rope_theta": 1000000.0},
        },
    },
    "phi3": {},
    "olmo2": {},
    "olmo3": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "lfm2": TIED | {
        "layer_types": ["conv", "conv", "full_attention"], "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [2], "block_dim": 64, "block_ff_dim": 96, "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0, "conv_L_cache": 3, "norm_eps": 1e-5,
    },
    "gemma3": {
        "text_config": GEMMA | {
            "model_type": "gemma3_text",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
        },
        "vision_config": VISION, "vocab_size": VOCABULARY,
    },
    "qwen2_moe": EXPERTS | {"norm_topk_prob": False, "shared_expert_intermediate_size": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1,
        "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
    },
    "granite": TIED,
    "smollm3": TIED,
    "cohere2": TIED | {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "logit_scale": 1.0,
    },
    "glm4": {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
    "starcoder2": TIED,
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4,
        "head_dim": None,
    },
    "qwen3_next": EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 32},
}  # fmt: skip
MIXTURES = (
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "granitemoe",
    "glm4_moe",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_next",
)


def settings_of(family: str, **changes: Any) -> dict[str, Any]:
    """The arguments of transformers' config class."""
    added = FAMILIES[family]
    settings = {"rope_parameters": ROPE} | COMMON | added | changes
    if "text_config" in added:
        text = {"rope_parameters": ROPE} | COMMON | added["text_config"] | changes
        settings = {**added, "text_config": text}
        settings["tie_word_embeddings"] = text["tie_word_embeddings"]
    copied: dict[str, Any] = json.loads(json.dumps(settings))  # config classes write into them
    return {name: value for name, value in copied.items() if value is not None}


def build_theirs(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of transformers, saved in `folder` as a base that mlx-lm loads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings_of(family, **changes))
    whole = "text_config" in FAMILIES[family]
    kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model = draw_weights(kind.from_config(config).float().eval())
    if family == "gpt_oss":
        save_gpt_oss(model, folder)
    else:
        model.save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(str(folder))
    if family == "qwen3_5":  # for text alone there is a class, with names of its own
        return AutoModelForCausalLM.from_pretrained(folder).float().eval()
    return model


def draw_weights(model: Any) -> Any:
    """A model of transformers with matrices that are not small."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


def save_gpt_oss(model: Any, folder: Path) -> None:
    """As an MLX folder: mlx-lm reads its experts from MXFP4 files only."""
    config = model.config.to_dict() | {"rope_theta": 10000.0, "rope_scaling": None}
    weights = {}
    for name, value in model.state_dict().items():
        array = mx.array(value.numpy())
        if ".experts.gate_up_proj" in name:
            bias = name.endswith("_bias")
            for part, start in (("gate_proj", 0), ("up_proj", 1)):
                rows = array[..., start::2]
                leaf = "bias" if bias else "weight"
                key = name.replace("gate_up_proj_bias" if bias else "gate_up_proj", part)
                weights[f"{key}.{leaf}"] = rows if bias else rows.swapaxes(1, 2)
        elif name.endswith(".experts.down_proj_bias"):
            weights[name.replace("_bias", ".bias")] = array
        elif name.endswith(".experts.down_proj"):
            weights[f"{name}.weight"] = array.swapaxes(1, 2)
        else:
            weights[name] = array
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    save_config(config, folder / "config.json")


def random_adapter(
    base: Path,
    folder: Path,
    targets: Sequence[str],
    *,
    kind: str = "lora",
    num_layers: int = -1,
    rank: int = 4,
    scale: float = 2.0,
    seed: int = 1,
) -> nn.Module:
    """An adapter with random lora_b, saved as a run's is, and the MLX model with it."""
    model, _, _ = load_weights(base, str(base))
    mx.random.seed(seed)
    targeted = lora.find_targets(model, targets, num_layers)
    config = lora.attach(model, targeted, kind=kind, rank=rank, scale=scale, dropout=0.0, bits={})
    weights = {}
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            value = mx.random.normal(value.shape) * 0.1
        elif name.endswith(".m"):
            value = value * mx.random.uniform(0.8, 1.2, value.shape)
        weights[name] = value
    model.update(tree_unflatten(list(weights.items())))
    save_adapter(folder, weights, {**config, "model": str(base)})
    return model.eval()


def token_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCABULARY, (2, 24))


def our_logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(token_ids())))


def their_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(token_ids())).logits.numpy()
    return logits
