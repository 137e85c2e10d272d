"""Tiny random bases and toy pairs, so that a machine can be tried without a download."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.model.mlx_lm_api import (
    constructed,
    get_classes,
    quantize_model,
    save_config,
    save_model,
)

# With it no token is within 1e-3 of going to another expert.
SEED = 11
VOCABULARY = 320  # 256 bytes, the special tokens, and some that no text uses
WINDOW = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Heads of 64 as real models have, so that the GPU runs the same kernels.
COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
# One of each kind: plain attention, windows, experts, recurrent layers.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {
        "query_pre_attn_scalar": 64,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    "qwen3_moe": EXPERTS,
    "qwen3_next": {
        **EXPERTS,
        "shared_expert_intermediate_size": 64,
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.5,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
    },
}
# Of prompts, after what all share, and of both answers, after what they share.
LENGTHS = ((17, (19, 24)), (22, (21, 23)), (17, (23, 22)), (80, (7, 5)))
MIXTURES = ("qwen3_moe", "qwen3_next")


def build_model(
    family: str, *, dtype: mx.Dtype = mx.float32, bits: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of a family and its config; `bits` quantizes it in groups of 64."""
    config = {"model_type": family, **COMMON, **FAMILIES[family]}
    model = random_model(config, SEED)
    model.set_dtype(dtype)
    if bits:
        model, config = quantize_model(model, config, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return model, config


def random_model(config: dict[str, Any], seed: int) -> nn.Module:
    """The model of a config, with random float32 weights."""
    model_class, arguments = get_classes(config)
    mx.random.seed(seed)
    return constructed(model_class(arguments.from_dict(config)))


def build_adapted(family: str, *, dtype: mx.Dtype, bits: int | None) -> nn.Module:
    """Such a model with LoRA on all linear layers, both of its matrices random."""
    model, _ = build_model(family, dtype=dtype, bits=bits)
    targets = lora.find_targets(model, [lora.ALL_LINEAR], -1)
    lora.attach(model, targets, kind="lora", rank=4, scale=2.0, dropout=0.0, bits={})
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    model.train()
    mx.eval(model.parameters())
    return model


def build_pairs(family: str = "llama") -> list[EncodedPair]:
    """Random token ids: prompts that begin alike, two of one length; responses that begin alike.

    The last pair's tails are of at most 8 tokens: there Metal's attention has a kernel of its own.
    Mixtures of experts do without it: one of its tokens would be nearly between two experts.
    """
    random = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return random.integers(3, VOCABULARY, count, dtype=np.int32)

    shared, pairs = draw(3 * WINDOW // 2), []
    for number, (length, answers) in enumerate(LENGTHS):
        prompt, start = np.concatenate([shared, draw(length)]), draw(number)
        chosen, rejected = map(draw, answers)
        pairs.append(
            EncodedPair(
                prompt,
                np.concatenate([start, chosen]),
                np.concatenate([start, rejected]),
                str(number),
            )
        )
    return pairs[:-1] if family in MIXTURES else pairs


def save_base(folder: Path) -> None:
    """Write a 4-bit llama with a tokenizer of bytes, as mlx-lm writes a base.

    Its scales are float32, so that numbers on both sides of a file can be compared closely.
    """
    model, config = build_model("llama", bits=4)
    tokenizer = build_tokenizer()
    folder.mkdir()
    save_model(folder, model)
    save_config(config | {"eos_token_id": tokenizer.eos_token_id}, folder / "config.json")
    tokenizer.save_pretrained(str(folder))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and ChatML's special tokens."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, []))
    tokenizer.add_special_tokens([*SPECIAL])
    return chat_tokenizer(tokenizer, CHATML)


def chat_tokenizer(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with SPECIAL among its tokens, as transformers has it."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    wrapped.chat_template = template
    return wrapped


def save_pairs(file: Path, count: int, start: int = 0) -> None:
    """Write pairs with a plain preference as JSON Lines."""
    things = ("card", "light", "phone", "order")
    rows = (
        {
            "prompt": f"my {things[n % 4]} {n} is broken",
            "chosen": f"please check the {things[n % 4]} first",
            "rejected": f"we can not help you, call later {n}",
        }
        for n in range(start, start + count)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
