"""A llama's settings in a GGUF file: checked facts, or one error with all that is wrong."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from orpo_mlx.errors import collected
from orpo_mlx.interop.gguf.names import GGUF_EMBEDDING
from orpo_mlx.interop.gguf.reader import KINDS, READABLE, GgufFile
from orpo_mlx.interop.gguf.tokenizer import ADDED, SPECIAL

GGUF_HEAD = "output.weight"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe")
MAX_LAYERS = 1000
MAX_WIDTH = 1 << 24
SOUGHT = (SPECIAL, ADDED)  # these are found in text before it is cut
_PLAIN_TOKEN = re.compile(r"[^\s:$]+")  # one that a template of `tokenizers` can name
_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


class Llama(NamedTuple):
    """A plain llama: sizes, rope and tokenizer."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    theta: float
    epsilon: float
    pre_tokenizer: str
    tokens: list[str]
    token_types: list[int]
    merges: list[tuple[str, str]]
    ids: dict[str, int]  # of bos and eos, and of pad and unk if there are any
    add_bos: bool
    chat_template: str | None


def read_llama(file: GgufFile) -> Llama:
    """The facts; raises OrpoError if they contradict each other, the tensors or a plain llama."""
    if (architecture := file.metadata.get("general.architecture")) != "llama":
        problems = [f"general.architecture is {architecture!r} (allowed: 'llama')"]
        raise collected(f"{file.path} cannot be converted:", problems)
    reader = _Reader(file)
    facts = reader.facts()
    problems = reader.problems or [*_contradictions(file, facts), *_tensor_problems(file, facts)]
    if problems:
        raise collected(f"{file.path} cannot be converted:", problems)
    return facts


def tensor_names(file: GgufFile, layers: int) -> dict[str, str]:
    """Tensor name in the file -> name in a Hugging Face checkpoint."""
    names = {GGUF_EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if GGUF_HEAD in file.tensors:
        names[GGUF_HEAD] = "lm_head.weight"
    for layer in range(layers):
        for ours, theirs in LAYER.items():
            names[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


class _Reader:
    """Takes values out of the metadata and notes what is wrong with them."""

    def __init__(self, file: GgufFile) -> None:
        self.metadata, self.problems = file.metadata, list[str]()

    def facts(self) -> Llama:
        hidden = self.whole_number("llama.embedding_length")
        heads = self.whole_number("llama.attention.head_count")
        tokens = self.texts("tokenizer.ggml.tokens")
        add_bos = self.take(
            "tokenizer.ggml.add_bos_token",
            "true or false",
            lambda v: type(v) is bool,
            # llama.cpp's rule where the file is silent
            default=self.metadata.get("tokenizer.ggml.pre") == "llama-bpe",
            fallback=False,
        )
        return Llama(
            layers=self.whole_number("llama.block_count", most=MAX_LAYERS),
            hidden=hidden,
            inner=self.whole_number("llama.feed_forward_length"),
            heads=heads,
            kv_heads=self.whole_number("llama.attention.head_count_kv", heads),
            head_dim=self.whole_number("llama.attention.key_length", max(hidden // heads, 1)),
            context=self.whole_number("llama.context_length", most=1 << 40),
            theta=self.number("llama.rope.freq_base", 10000.0),  # llama.cpp's own
            epsilon=self.number("llama.attention.layer_norm_rms_epsilon"),
            pre_tokenizer=self.metadata.get("tokenizer.ggml.pre", ""),
            tokens=tokens,
            token_types=self.whole_numbers("tokenizer.ggml.token_type", 7),
            merges=self.merges(set(tokens)),
            ids=self.ids(len(tokens), {"bos", "eos"} if add_bos else {"eos"}),
            add_bos=add_bos,
            chat_template=self.take(
                "tokenizer.chat_template", "text", lambda v: isinstance(v, str), None, None
            ),
        )

    def take(
        self, key: str, wanted: str, fits: Callable[[Any], bool], default: Any, fallback: Any
    ) -> Any:
        """The value; `default` where there is none, `fallback` (and a problem) if it is wrong."""
        value = self.metadata.get(key, default)
        if (key not in self.metadata and value is not None) or fits(value):
            return value
        if value is not None:
            self.problems.append(f"{key} is {_shown(value)} (allowed: {wanted})")
        elif fallback is not None:
            self.problems.append(f"the metadata has no {key}")
        return fallback

    def whole_number(self, key: str, default: int | None = None, most: int = MAX_WIDTH) -> int:
        def fits(value: Any) -> bool:
            return type(value) is int and 1 <= value <= most

        return self.take(key, f"a whole number from 1 to {most:,}", fits, default, 1)

    def number(self, key: str, default: float | None = None) -> float:
        def fits(value: Any) -> bool:
            return type(value) in (int, float) and math.isfinite(value) and 1e-30 < value < 1e15

        return self.take(key, "a number above 0", fits, default, 1.0)

    def texts(self, key: str) -> list[str]:
        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(v, str) and v for v in value)

        return self.take(key, "texts that are not empty", fits, None, [])

    def whole_numbers(self, key: str, below: int) -> list[int]:
        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(type(v) is int and 0 <= v < below for v in value)

        return self.take(key, f"whole numbers below {below}", fits, None, [])

    def merges(self, tokens: set[str]) -> list[tuple[str, str]]:
        """Pairs of tokens whose sum is a token."""
        key, pairs = "tokenizer.ggml.merges", []
        for merge in self.texts(key):
            one, _, other = merge.partition(" ")
            if not {one, other, one + other} <= tokens:
                self.problems.append(f"{key}: {_shown(merge)} does not join two tokens to a third")
                break
            pairs.append((one, other))
        return pairs

    def ids(self, tokens: int, needed: set[str]) -> dict[str, int]:
        def fits(value: Any) -> bool:
            return type(value) is int and 0 <= value < tokens

        wanted, ids = f"a token, 0 to {tokens - 1}", {}
        for name, word in _IDS.items():
            missing = 0 if name in needed else None
            key = f"tokenizer.ggml.{word}_token_id"
            ids[name] = self.take(key, wanted, fits, None, missing)
        return {name: value for name, value in ids.items() if value is not None}


def _contradictions(file: GgufFile, facts: Llama) -> list[str]:
    """Metadata that the folder that we write would not follow, or that contradict each other."""
    allowed = {
        "tokenizer.ggml.model": ("gpt2",),
        "tokenizer.ggml.pre": PRE_TOKENIZERS,
        "llama.rope.scaling.type": ("none", None),
        "llama.rope.scaling.factor": (1.0, 0.0, None),
        "llama.rope.scale_linear": (1.0, 0.0, None),
        "llama.rope.dimension_count": (facts.head_dim, None),
        "llama.attention.value_length": (facts.head_dim, None),
        "llama.attention.sliding_window": (0, None),
    }
    problems = [
        f"{key} is {_shown(value)} (allowed: {', '.join(repr(v) for v in values if v is not None)})"
        for key, values in allowed.items()
        if (value := file.metadata.get(key)) not in values
    ]
    if facts.heads % facts.kv_heads:
        problems.append(
            f"{facts.heads} heads cannot share {facts.kv_heads} heads of keys and values"
        )
    if "llama.attention.key_length" not in file.metadata and facts.hidden % facts.heads:
        problems.append(f"{facts.heads} heads do not divide {facts.hidden} dimensions")
    if facts.head_dim % 2:
        problems.append(f"rope rotates pairs, but a head has {facts.head_dim} dimensions")
    if len(set(facts.tokens)) != len(facts.tokens):
        problems.append("tokenizer.ggml.tokens has the same token twice")
    if len(facts.token_types) != len(facts.tokens):
        problems.append(f"{len(facts.tokens):,} tokens have {len(facts.token_types):,} types")
    if facts.add_bos and not _PLAIN_TOKEN.fullmatch(facts.tokens[facts.ids["bos"]]):
        problems.append("tokenizer.ggml.add_bos_token: no text can begin with that token")
    return problems


def _tensor_problems(file: GgufFile, facts: Llama) -> list[str]:
    names = tensor_names(file, facts.layers)
    allowed = ", ".join(KINDS[kind] for kind in READABLE)
    problems = [f"tensor {name} is missing" for name in names if name not in file.tensors]
    for name, tensor in file.tensors.items():
        if name not in names:
            problems.append(f"tensor {name[:60]} is not part of a plain llama model")
        elif tensor.kind not in READABLE:
            kind = KINDS.get(tensor.kind, f"number {tensor.kind}")
            problems.append(f"tensor {name} has the type {kind} (allowed: {allowed})")
        elif tensor.shape != (wanted := _shape(name.split(".")[-2], facts)):
            problems.append(f"tensor {name} has the shape {tensor.shape}, not {wanted}")
    return problems


def _shape(part: str, facts: Llama) -> tuple[int, ...]:
    """Rows first, of a tensor by its name without layer and `.weight`."""
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return {
        "token_embd": (len(facts.tokens), facts.hidden),
        "output": (len(facts.tokens), facts.hidden),
        "attn_q": (queries, facts.hidden),
        "attn_k": (keys, facts.hidden),
        "attn_v": (keys, facts.hidden),
        "attn_output": (facts.hidden, queries),
        "ffn_gate": (facts.inner, facts.hidden),
        "ffn_up": (facts.inner, facts.hidden),
        "ffn_down": (facts.hidden, facts.inner),
    }.get(part, (facts.hidden,))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value):,} values" if value else "empty"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
