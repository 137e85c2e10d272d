"""The tokenizer in an exported GGUF file: llama.cpp's tokens are Hugging Face's."""

import unicodedata
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.interop.gguf.tokenizer import LLAMA3, PRE_TOKENIZERS, QWEN2
from tests import tiny
from tests.parity import llama_cpp
from tests.parity.peft_bases import random_adapter
from tests.parity.test_demo_base import varied_texts

pytestmark = [pytest.mark.long, pytest.mark.parity]

SIZE = 700
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = "<think>"  # found in text, and shown
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), WORDS]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "dbrx": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
}


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A small BPE trained on the texts that it is tried on, splitting as `name` does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = CUTS[name]
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 20,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(varied_texts(), trainer)
    tokenizer.add_tokens([AddedToken(ADDED, normalized=False, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def test_every_way_of_cutting_is_here() -> None:
    assert set(CUTS) == set(PRE_TOKENIZERS.values())


@pytest.mark.parametrize("name", CUTS)
def test_llama_cpp_makes_the_same_tokens(node: Path, tmp_path: Path, name: str) -> None:
    tokenizer = build_tokenizer(name)
    base = tiny.save_base(tmp_path / "base", vocab_size=SIZE)
    tokenizer.save_pretrained(str(base))
    random_adapter(base, tmp_path / "run", ["q_proj"])
    config = ExportConfig(
        adapter=tmp_path / "run", to="gguf", output=tmp_path / "out", with_base=True
    )
    export_gguf(config, lambda event: None)
    texts = [*varied_texts(), f"{ADDED}a</think>", f"x {ADDED} y"]
    # llama.cpp does not compose characters: of these few texts it makes other tokens
    texts = [t for t in texts if name != "qwen2" or unicodedata.is_normalized("NFC", t)]
    ours = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    asked = {"model": str(tmp_path / "out" / "base.gguf"), "texts": texts, "ids": []}
    theirs = llama_cpp.ask(node, llama_cpp.TOKENIZE, asked, tmp_path)
    different = {t: (a, b) for t, a, b in zip(texts, ours, theirs["ids"], strict=True) if a != b}
    assert not different
