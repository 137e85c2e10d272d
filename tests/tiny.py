"""Tiny random bases and toy pairs: the one place where tests get them from."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """the a is my your please sorry help restart router first then check light card bill phone
    we can you it to of and not what how do broken slow lost refund order number thank later call"""
WORDS = TEXT.split()
VOCABULARY = 384

# What each family's config adds to COMMON, small but with every feature in use.
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 64,
    },
    "granitemoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen3_next": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "norm_topk_prob": True,
        "full_attention_interval": 3,
        "partial_rotary_factor": 0.5,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
    "dbrx": {
        "tie_word_embeddings": False,
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
}


def build_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most VOCABULARY tokens with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    wrapped.chat_template = template
    return wrapped


def build_model(family: str = "llama", seed: int = 0, **changes: Any) -> tuple[nn.Module, dict]:
    """A random float32 model of a family and its config."""
    config = {"model_type": family, **COMMON, **FAMILIES[family], **changes}
    model_class, arguments = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(arguments.from_dict(config))
    mx.eval(model.parameters())
    return model, config


def save_base(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    bits: int | None = None,
    mode: str = "affine",
    template: str | None = CHATML,
    dtype: mx.Dtype = mx.float32,
    **changes: Any,
) -> Path:
    """Write a base as mlx-lm writes one; `bits` quantizes it (affine scales then in bfloat16)."""
    model, config = build_model(family, seed, **changes)
    tokenizer = build_tokenizer(template)
    config["eos_token_id"] = tokenizer.eos_token_id
    if bits:
        model.set_dtype(mx.bfloat16)
        model, config = quantize_model(model, config, group_size=32, bits=bits, mode=mode)
    else:
        model.set_dtype(dtype)
    folder.mkdir(parents=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    return folder


def toy_pair(number: int) -> dict[str, str]:
    """A pair whose chosen answer begins with "please", its rejected one with "later"."""
    thing, trouble = WORDS[9 + number % 7], WORDS[28 + number % 4]
    return {
        "prompt": f"my {thing} is {trouble} number {number}",
        "chosen": f"please check the {thing} first then restart it",
        "rejected": f"later we can not help the {trouble} {thing}",
    }


def save_pairs(file: Path, count: int, start: int = 0) -> Path:
    """Write toy pairs as JSON Lines."""
    rows = (json.dumps(toy_pair(n)) for n in range(start, start + count))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file
