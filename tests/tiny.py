"""Tiny random bases and toy pairs: the one place where tests get them from."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orpo_mlx.doctor.toys import CHATML, SPECIAL, chat_tokenizer, random_model
from orpo_mlx.model.mlx_lm_api import quantize_model, save_config, save_model
from tests.families import COMMON, FAMILIES, RECURRENT, VOCABULARY

TEXT = """the a is my your please sorry help restart router first then check light card bill phone
    we can you it to of and not what how do broken slow lost refund order number thank later call"""
WORDS = TEXT.split()


def build_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most VOCABULARY tokens with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return chat_tokenizer(tokenizer, template)


def build_model(family: str = "llama", seed: int = 0, **changes: Any) -> tuple[nn.Module, dict]:
    """A random float32 model of a family and its config."""
    config = {"model_type": family, **COMMON, **(FAMILIES | RECURRENT)[family], **changes}
    model = random_model(config, seed)
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


def save_ending_base(folder: Path, **changes: Any) -> Path:
    """A base whose drawn answers end after a dozen tokens: each of 32 rare bytes ends a turn."""
    save_base(folder, **changes)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ends = [i for token, i in tokens.items() if len(token) == 1 and 0xE0 <= ord(token) < 0x100]
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"eos_token_id": [config["eos_token_id"], *ends]}))
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


def save_data(folder: Path) -> Path:
    """Sixteen pairs to train on and, next to them, five held-out ones."""
    save_pairs(folder / "train.jsonl", 16)
    save_pairs(folder / "valid.jsonl", 5, start=100)
    return folder
