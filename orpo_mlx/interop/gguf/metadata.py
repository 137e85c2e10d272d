"""The settings that llama.cpp needs besides a model's weights, or an error for those it lacks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from orpo_mlx.errors import collected
from orpo_mlx.interop.gguf.names import Architecture, NotInGgufError

# Read by llama.cpp's load_arch_hparams of these architectures (src/models/*.cpp).
_GRANITE = {
    "logit_scale": "logits_scaling",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
}


def model_facts(
    args: Any,  # mlx-lm's ModelArgs, defaults filled in
    config: dict[str, Any],
    architecture: Architecture,
) -> dict[str, Any]:
    """The metadata under `<architecture>.`; raises NotInGgufError for settings not written."""
    if problems := _refusals(args, config):
        heading = "--to gguf: these settings of the model are not written:"
        raise NotInGgufError(str(collected(heading, problems)))
    heads = args.num_attention_heads
    size = config.get("head_dim") or args.hidden_size // heads
    facts = {
        "block_count": args.num_hidden_layers,
        "context_length": config.get("max_position_embeddings") or 2048,
        "embedding_length": args.hidden_size,
        "feed_forward_length": args.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": args.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(args.rms_norm_eps),
        "rope.dimension_count": int(size * (config.get("partial_rotary_factor") or 1.0)),
        "rope.freq_base": float(args.rope_theta),
        "vocab_size": args.vocab_size,
    }
    if (extra := _EXTRA.get(config["model_type"])) is not None:
        facts |= extra(args)
    if _scaling(args).get("type") == "linear":
        facts |= {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": float(_scaling(args)["factor"]),
        }
    return {f"{architecture.name}.{key}": value for key, value in facts.items()}


def rope_factors(args: Any) -> np.ndarray | None:
    """What Llama 3's rope divides its frequencies by, (d/2,); None for plain rope.

    Source: mlx_lm/models/rope_utils.py, Llama3RoPE; llama.cpp, conversion/llama.py.
    """
    scaling = _scaling(args)
    if scaling.get("type") != "llama3":
        return None
    size = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
    factor, low = scaling["factor"], scaling.get("low_freq_factor", 1.0)
    high = scaling.get("high_freq_factor", 4.0)
    context = scaling.get("original_max_position_embeddings", 8192)
    wavelengths = 2 * math.pi * args.rope_theta ** (np.arange(0, size, 2) / size)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _experts(args: Any) -> dict[str, Any]:
    return {
        "expert_count": args.num_experts,
        "expert_used_count": args.num_experts_per_tok,
        "expert_feed_forward_length": args.moe_intermediate_size,
    }


_EXTRA: dict[str, Callable[[Any], dict[str, Any]]] = {
    "granite": lambda args: {k: float(getattr(args, v)) for k, v in _GRANITE.items()},
    "mixtral": lambda args: {
        "expert_count": args.num_local_experts,
        "expert_used_count": args.num_experts_per_tok,
    },
    "qwen3_moe": _experts,
}


def _scaling(args: Any) -> dict[str, Any]:
    """Rope scaling with its kind under `type`; empty for plain rope."""
    scaling = dict(getattr(args, "rope_scaling", None) or {})
    kind = scaling.get("type") or scaling.get("rope_type", "default")
    return {} if kind == "default" else {**scaling, "type": kind}


def _refusals(args: Any, config: dict[str, Any]) -> list[str]:
    """Settings that change what is computed, and that llama.cpp does not read."""
    problems = []
    kind = config["model_type"]
    if (scaling := _scaling(args).get("type")) not in (None, "linear", "llama3"):
        problems.append(f"rope_scaling of type {scaling!r} (allowed: linear, llama3)")
    elif scaling == "llama3" and kind not in ("llama", "mistral", "granite"):
        problems.append("rope_scaling of type 'llama3' (allowed only for llama)")
    if "sliding_attention" in (getattr(args, "layer_types", None) or []):
        problems.append("layer_types with sliding_attention")
    if kind == "smollm3" and args.no_rope_layers != [
        int(i % 4 != 3) for i in range(args.num_hidden_layers)
    ]:
        problems.append("no_rope_layers (allowed: every fourth layer without rope)")
    if kind == "qwen3_moe" and (args.mlp_only_layers or args.decoder_sparse_step != 1):
        problems.append("layers without experts (mlp_only_layers, decoder_sparse_step)")
    if kind == "qwen3_moe" and not args.norm_topk_prob:
        problems.append("norm_topk_prob false")
    if kind == "olmo2" and args.tie_word_embeddings:
        problems.append("tie_word_embeddings: llama.cpp's olmo2 wants a head of its own")
    return problems
