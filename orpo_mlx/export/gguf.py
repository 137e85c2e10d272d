"""A llama GGUF file as a plain Hugging Face folder: float32 weights, config and tokenizer.

Reads the file itself: `mx.load` turns tensor types that it does not know into float16 unsaid.
Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
"""

import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.errors import OrpoError, collected

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9  # kinds of metadata values, as the scalars above
_SPECIAL = 3  # a token's type
_BLOCK = 32  # values that share a scale

_NIBBLES = ("quants", "u1", _BLOCK // 2)  # byte i holds value i below and value 16 + i above
_READABLE: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    2: np.dtype([("scale", "<f2"), _NIBBLES]),
    3: np.dtype([("scale", "<f2"), ("least", "<f2"), _NIBBLES]),
    8: np.dtype([("scale", "<f2"), ("quants", "i1", _BLOCK)]),
}
_KINDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K"}
_KINDS |= {11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16"}

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_LAYER = {
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


class _Tensor(NamedTuple):
    kind: int  # a key of _READABLE, or the tensor cannot be read
    shape: tuple[int, ...]  # rows first
    offset: int  # bytes from the start of the file


class _File(NamedTuple):
    path: Path
    content: bytes
    metadata: dict[str, Any]
    tensors: dict[str, _Tensor]

    def value(self, key: str) -> Any:
        if key not in self.metadata:
            raise OrpoError(f"{self.path}: the metadata has no {key}.")
        return self.metadata[key]


def convert_gguf(source: Path, target: Path) -> None:
    """Write the llama model in `source` to the new folder `target`, its weights exact in float32.

    Raises OrpoError if `target` exists, if the file is broken, or if something in it (a tensor's
    type or name, the tokenizer) could not be given back exactly.
    """
    if target.exists():
        raise OrpoError(f"{target} exists. Remove it or name another folder.")
    file = _read(source)
    if problems := _model_problems(file) or _tensor_problems(file):
        raise collected(f"{source} cannot be converted:", problems)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        _save_weights(file, folder)
        _save_tokenizer(file, folder)
        config = _config(file)
        _save_json(folder / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        _save_json(folder / "generation_config.json", ids)
        folder.rename(target)


class _Cursor:
    """Reads the values of a GGUF header one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content, self.offset = content, 0

    def numbers(self, letter: str, count: int) -> list[Any]:
        layout = f"<{count}{letter}"
        values = struct.unpack_from(layout, self.content, self.offset)
        self.offset += struct.calcsize(layout)
        return list(values)

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def text(self) -> str:
        return self.numbers("s", self.number("Q"))[0].decode()

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], count)
        return [self.value(kind) for _ in range(count)]


def _read(path: Path) -> _File:
    """The header of a GGUF file, whose tensors all lie inside it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OrpoError(f"{path} cannot be read: {error}.") from error
    if content[:4] != b"GGUF" or content[4:8] not in (b"\2\0\0\0", b"\3\0\0\0"):
        raise OrpoError(f"{path} is not a little-endian GGUF file of version 2 or 3.")
    try:
        metadata, tensors = _parse(_Cursor(content))
    except (struct.error, ValueError, KeyError) as error:
        raise OrpoError(f"{path} is broken: its header cannot be read ({error}).") from error
    for name, tensor in tensors.items():
        if tensor.kind in _READABLE and tensor.offset + _size_bytes(tensor) > len(content):
            raise OrpoError(f"{path} is broken: it ends inside tensor {name}. Fetch it anew.")
    return _File(path, content, metadata, tensors)


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    cursor.offset = 8
    tensor_count, value_count = cursor.numbers("Q", 2)
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(value_count)}
    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        shape = tuple(reversed(cursor.numbers("Q", cursor.number("I"))))
        tensors[name] = _Tensor(cursor.number("I"), shape, cursor.number("Q"))
    alignment = metadata.get("general.alignment", 32)
    start = math.ceil(cursor.offset / alignment) * alignment
    return metadata, {k: t._replace(offset=start + t.offset) for k, t in tensors.items()}


def _blocks(tensor: _Tensor) -> int:
    return math.prod(tensor.shape) // (_BLOCK if _READABLE[tensor.kind].names else 1)


def _size_bytes(tensor: _Tensor) -> int:
    return _blocks(tensor) * _READABLE[tensor.kind].itemsize


def _names(file: _File) -> dict[str, str]:
    """Tensor name in the file -> name in a Hugging Face checkpoint."""
    names = {_EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if _HEAD in file.tensors:
        names[_HEAD] = "lm_head.weight"
    for layer in range(file.value("llama.block_count")):
        for ours, theirs in _LAYER.items():
            names[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def _model_problems(file: _File) -> list[str]:
    """What the metadata ask for and a Hugging Face llama folder of ours would not do."""
    if (found := file.metadata.get("general.architecture")) != "llama":
        return [f"general.architecture is {found!r} (allowed: 'llama')"]
    allowed = {
        "tokenizer.ggml.model": ("gpt2",),
        "tokenizer.ggml.pre": ("smollm",),
        "tokenizer.ggml.add_bos_token": (False, None),
        "llama.rope.scaling.type": ("none", None),
        "llama.rope.dimension_count": (_heads(file)[2], None),
    }
    return [
        f"{key} is {found!r} (allowed: {values[0]!r})"
        for key, values in allowed.items()
        if (found := file.metadata.get(key)) not in values
    ]


def _tensor_problems(file: _File) -> list[str]:
    names = _names(file)
    allowed = ", ".join(_KINDS[kind] for kind in _READABLE)
    problems = [f"tensor {name} is missing" for name in names if name not in file.tensors]
    for name, tensor in file.tensors.items():
        if name not in names:
            problems.append(f"tensor {name} is none of a plain llama model")
        elif tensor.kind not in _READABLE:
            kind = _KINDS.get(tensor.kind, f"number {tensor.kind}")
            problems.append(f"tensor {name} has the type {kind} (allowed: {allowed})")
    return problems


def _heads(file: _File) -> tuple[int, int, int]:
    """How many heads the queries have, how many the keys and values, and their size."""
    hidden, heads = file.value("llama.embedding_length"), file.value("llama.attention.head_count")
    kv_heads = file.metadata.get("llama.attention.head_count_kv", heads)
    return heads, kv_heads, file.metadata.get("llama.attention.key_length", hidden // heads)


def _save_weights(file: _File, folder: Path) -> None:
    from safetensors.numpy import save_file

    heads = dict(zip(("attn_q", "attn_k"), _heads(file), strict=False))
    weights = {}
    for ours, theirs in _names(file).items():
        weights[theirs] = _dequantized(file.content, file.tensors[ours])
        if (part := ours.split(".")[-2]) in heads:
            weights[theirs] = _halves(weights[theirs], heads[part])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone


def _dequantized(content: bytes, tensor: _Tensor) -> np.ndarray:
    """The tensor in float32, each value the one that ggml's reference computes."""
    blocks = np.frombuffer(content, _READABLE[tensor.kind], _blocks(tensor), tensor.offset)
    if not blocks.dtype.names:
        return blocks.astype(np.float32).reshape(tensor.shape)
    quants, scale = blocks["quants"], blocks["scale"].astype(np.float32)[:, None]
    if quants.dtype == np.uint8:
        quants = np.concatenate([quants & 15, quants >> 4], axis=1).astype(np.int8)
        quants -= 0 if "least" in blocks.dtype.names else 8
    values = quants * scale
    if "least" in blocks.dtype.names:
        values += blocks["least"].astype(np.float32)[:, None]
    return values.reshape(tensor.shape)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * d, D) in Hugging Face's order: the two that rope turns together d/2 apart."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _config(file: _File) -> dict[str, Any]:
    (heads, kv_heads, head_dim), theta = _heads(file), _short(file.value("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": file.value("llama.embedding_length"),
        "intermediate_size": file.value("llama.feed_forward_length"),
        "num_hidden_layers": file.value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.value("llama.context_length"),
        "rms_norm_eps": _short(file.value("llama.attention.layer_norm_rms_epsilon")),
        # mlx-lm reads the first, transformers from 5 on the second
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": _HEAD not in file.tensors,
        "vocab_size": file.tensors[_EMBEDDING].shape[0],
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _short(value: float) -> float:
    """The decimal number that somebody wrote before it became a float32: 1e-05."""
    return float(str(np.float32(value)))


def _save_tokenizer(file: _File, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = file.value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    splits = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, file.value("tokenizer.ggml.token_type"), strict=True):
        if kind == _SPECIAL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    config = {
        # any other class would put its own pre-tokenizer in the place of the file's
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.value("llama.context_length"),
        "chat_template": file.value("tokenizer.chat_template"),
        **{f"{name}_token": tokens[index] for name, index in ids.items() if index is not None},
    }
    _save_json(folder / "tokenizer_config.json", config)


def _save_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
