"""A llama GGUF file as a plain Hugging Face folder: float32 weights, config and tokenizer.

Reads the file itself: `mx.load` silently turns tensor types that it does not know into float16.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import save_json
from orpo_mlx.interop.checkpoint.shards import LazyTensor, save_shards
from orpo_mlx.interop.gguf.llama import GGUF_HEAD, SOUGHT, Llama, read_llama, tensor_names
from orpo_mlx.interop.gguf.reader import GgufFile, dequantize_tensor, read_gguf
from orpo_mlx.interop.gguf.tokenizer import LLAMA3, SPECIAL


def convert_gguf(source: Path, target: Path) -> None:
    """Write the llama model in `source` to the new folder `target`, its weights exact in float32.

    Raises OrpoError if `target` exists, if the file is broken, or if something in it (a tensor's
    type or name, the tokenizer) could not be given back exactly.
    """
    if target.exists():
        raise OrpoError(f"{target} exists. Remove it or name another folder.")
    file = read_gguf(source)
    facts = read_llama(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        _save_tokenizer(facts, folder)
        config = _config(file, facts)
        save_json(folder / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        save_json(folder / "generation_config.json", ids)
        _save_weights(file, facts, folder)
        folder.rename(target)


def _save_weights(file: GgufFile, facts: Llama, folder: Path) -> None:
    tensors = {}
    for ours, theirs in tensor_names(file, facts.layers).items():
        shape = file.tensors[ours].shape
        tensors[theirs] = LazyTensor("F32", shape, math.prod(shape) * 4, _weight(file, facts, ours))
    save_shards(folder, tensors, layout="pt", report=lambda _: None)


def _weight(file: GgufFile, facts: Llama, name: str) -> Any:
    heads = {"attn_q": facts.heads, "attn_k": facts.kv_heads}.get(name.split(".")[-2])

    def make() -> memoryview:
        weight = dequantize_tensor(file, name)
        return (weight if heads is None else _halves(weight, heads)).data.cast("B")

    return make


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * d, D) in Hugging Face's order: the two that rope rotates together d/2 apart."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _config(file: GgufFile, facts: Llama) -> dict[str, Any]:
    theta = _short(facts.theta)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts.hidden,
        "intermediate_size": facts.inner,
        "num_hidden_layers": facts.layers,
        "num_attention_heads": facts.heads,
        "num_key_value_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "max_position_embeddings": facts.context,
        "rms_norm_eps": _short(facts.epsilon),
        # mlx-lm reads the first, transformers from 5 on the second
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": GGUF_HEAD not in file.tensors,
        "vocab_size": len(facts.tokens),
        "bos_token_id": facts.ids.get("bos"),
        "eos_token_id": facts.ids["eos"],
        "pad_token_id": facts.ids.get("pad"),
        "dtype": "float32",
    }


def _short(value: float) -> float:
    """The decimal number that somebody wrote before it became a float32: 1e-05."""
    return float(str(np.float32(value)))


def _save_tokenizer(facts: Llama, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    numbered = {token: i for i, token in enumerate(facts.tokens)}
    # Llama 3 takes a whole word that is a token as it is, whatever merges would make of it.
    whole = {"ignore_merges": True} if facts.pre_tokenizer == "llama-bpe" else {}
    tokenizer = Tokenizer(models.BPE(numbered, facts.merges, **whole))
    tokenizer.pre_tokenizer = _pre_tokenizer(facts.pre_tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(facts.tokens, facts.token_types, strict=True)
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, special=k == SPECIAL) for t, k in kinds if k in SOUGHT]
    )
    if facts.add_bos:
        tokenizer.post_processor = _begins_with(facts.tokens[facts.ids["bos"]], facts.ids["bos"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # any other class would put its own pre-tokenizer in the place of the file's
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts.context,
        **({} if facts.chat_template is None else {"chat_template": facts.chat_template}),
        **{f"{name}_token": facts.tokens[index] for name, index in facts.ids.items()},
    }
    save_json(folder / "tokenizer_config.json", config)


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts as GPT-2 does
    if name == "gpt-2":
        return words
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words])
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    return pre_tokenizers.Sequence([cut, bytes_alone])


def _begins_with(token: str, index: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, index)]
    )
