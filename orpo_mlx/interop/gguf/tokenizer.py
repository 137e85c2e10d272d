"""A tokenizer as GGUF metadata: byte-level BPE only, recognized by how it splits text."""

import json
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.gguf.names import NotInGgufError
from orpo_mlx.model.mlx_lm_api import unwrap_tokenizer

NORMAL, SPECIAL, ADDED, UNUSED = 1, 3, 4, 5  # llama.h: enum llama_token_type
_END_KEYS = ("eos", "eot", "eom")  # llama.cpp ends a turn at each of these

# Regular expressions before the merges, as tokenizer.json of these models has them, and as
# github.com/ggml-org/llama.cpp, src/llama-vocab.cpp: LLAMA_VOCAB_PRE_TYPE_LLAMA3.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Steps of the pre-tokenizer, whether whole words that are tokens skip the merges -> the name that
# llama.cpp (src/llama-vocab.cpp) knows them by. The steps: tests/parity/test_llama_cpp.py.
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("bytes, words",), False): "gpt-2",
    (("digits", "bytes, words"), False): "smollm",
    ((LLAMA3, "bytes"), True): "llama-bpe",
    ((LLAMA3, "bytes"), False): "dbrx",
    ((QWEN2, "bytes"), False): "qwen2",
}


def chat_template(tokenizer: Any) -> str | None:
    """The Jinja text of the chat template; of several, the default one."""
    template = unwrap_tokenizer(tokenizer)[0].chat_template
    return template.get("default") if isinstance(template, dict) else template


def adds_bos(plain: Any) -> bool:
    """Whether every text begins with the same token, which llama.cpp adds then."""
    return bool(plain.encode("a")[:1] == [plain.bos_token_id])


def tokenizer_facts(
    tokenizer: Any,
    size: int,  # rows of the embedding, which may be more than there are tokens
) -> dict[str, Any]:
    """The metadata under `tokenizer.`; raises OrpoError for a tokenizer that GGUF cannot hold."""
    plain = unwrap_tokenizer(tokenizer)[0]
    stored = json.loads(plain.backend_tokenizer.to_str())
    model, added = stored["model"], stored["added_tokens"]
    name = _pre_tokenizer(stored)
    tokens = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = SPECIAL if token["special"] else ADDED
    if max(tokens) >= size:
        raise OrpoError(
            f"--to gguf: the tokenizer has {max(tokens) + 1:,} tokens, the model {size:,}."
        )
    facts: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [tokens.get(i, f"[PAD{i}]") for i in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(i, UNUSED) for i in range(size)],
        "tokenizer.ggml.merges": [
            m if isinstance(m, str) else " ".join(m) for m in model["merges"]
        ],
    }
    return facts | _special_ids(tokenizer, plain)


def _special_ids(tokenizer: Any, plain: Any) -> dict[str, Any]:
    """Where text begins and turns end, and the chat template."""
    first = plain.eos_token_id
    ends = sorted(tokenizer.eos_token_ids, key=lambda i: (i != first, i))
    facts: dict[str, Any] = {
        f"tokenizer.ggml.{key}_token_id": int(index)
        for key, index in zip(_END_KEYS, ends, strict=False)
    }
    if plain.bos_token_id is not None:
        facts["tokenizer.ggml.bos_token_id"] = plain.bos_token_id
    if plain.pad_token_id is not None:
        facts["tokenizer.ggml.padding_token_id"] = plain.pad_token_id
    facts["tokenizer.ggml.add_bos_token"] = adds_bos(plain)
    if template := chat_template(tokenizer):
        facts["tokenizer.chat_template"] = template
    return facts


def _pre_tokenizer(stored: dict[str, Any]) -> str:
    """llama.cpp's name for how text is cut; raises OrpoError if it has none that we tested."""
    model = stored["model"]
    known = model["type"] == "BPE" and not model.get("byte_fallback")
    steps = tuple(_step(s) for s in _flat(stored["pre_tokenizer"]))
    name = PRE_TOKENIZERS.get((steps, bool(model.get("ignore_merges")))) if known else None
    normalizer = stored["normalizer"]
    plain = normalizer is None or (name == "qwen2" and normalizer == {"type": "NFC"})
    if name is None or not plain:
        raise NotInGgufError(
            "--to gguf: this tokenizer cannot be written (allowed: byte-level BPE that splits text "
            "as GPT-2, GPT-4, SmolLM, Llama 3 or Qwen 2 do)."
        )
    return name


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    return step["pretokenizers"] if step["type"] == "Sequence" else [step]


def _step(step: dict[str, Any]) -> str:
    """A step in a word, or the expression that it cuts by."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "bytes, words" if step["use_regex"] else "bytes"
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex"))
    return json.dumps(step)
