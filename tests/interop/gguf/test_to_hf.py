"""The GGUF converter against the writer and the dequantization of the `gguf` package."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.gguf.to_hf import convert_gguf

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER = 2, 4, 2, 16, 64, 256
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
LAYER_NAMES = {
    "self_attn.q_proj": ("attn_q", (HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "self_attn.o_proj": ("attn_output", (HIDDEN, HEADS * HEAD_DIM)),
    "mlp.gate_proj": ("ffn_gate", (INNER, HIDDEN)),
    "mlp.up_proj": ("ffn_up", (INNER, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, INNER)),
    "input_layernorm": ("attn_norm", (HIDDEN,)),
    "post_attention_layernorm": ("ffn_norm", (HIDDEN,)),
}


def tiny_names(tied: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in a Hugging Face checkpoint -> name in a GGUF file, and shape."""
    names = {
        "model.embed_tokens.weight": ("token_embd.weight", (len(TOKENS), HIDDEN)),
        "model.norm.weight": ("output_norm.weight", (HIDDEN,)),
    }
    if not tied:
        names["lm_head.weight"] = ("output.weight", (len(TOKENS), HIDDEN))
    for i in range(LAYERS):
        for theirs, (ours, shape) in LAYER_NAMES.items():
            names[f"model.layers.{i}.{theirs}.weight"] = (f"blk.{i}.{ours}.weight", shape)
    return names


def tiny_weights(kind: Kind, tied: bool) -> dict[str, np.ndarray]:
    """Random weights by Hugging Face name, rounded to what `kind` can hold."""
    random = np.random.default_rng(7)
    weights = {}
    for name, (_, shape) in tiny_names(tied).items():
        weight = random.normal(1, 0.1, shape) if len(shape) == 1 else random.normal(0, 0.3, shape)
        weight = weight.astype(np.float32)
        if len(shape) == 2:
            weight = gguf.dequantize(gguf.quantize(weight, kind), kind)
        weights[name] = weight
    return weights


def write_tiny_gguf(
    path: Path,
    kind: Kind,
    tied: bool = True,
    architecture: str = "llama",
    pre: str = "smollm",
    blank: dict[str, Kind] | None = None,  # tensors written as zero bytes of these types
    without: str = "",  # a tensor to leave out
) -> dict[str, np.ndarray]:
    """Write a random llama with the `gguf` package; return its weights by Hugging Face name."""
    blank, weights, names = blank or {}, tiny_weights(kind, tied), tiny_names(tied)
    writer = gguf.GGUFWriter(path, architecture)
    _add_metadata(writer, pre)
    for name, weight in weights.items():
        ours, shape = names[name]
        if ours in blank:
            data = np.zeros(gguf.quant_shape_to_byte_shape(shape, blank[ours]), np.uint8)
            writer.add_tensor(ours, data, raw_dtype=blank[ours])
        elif weight.ndim == 1:
            writer.add_tensor(ours, weight)
        elif ours != without:
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
            stored = weight if heads is None else _side_by_side(weight, heads)
            writer.add_tensor(ours, gguf.quantize(stored, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, `permute`."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add_metadata(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def failure(source: Path, target: Path) -> str:
    with pytest.raises(OrpoError) as caught:
        convert_gguf(source, target)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_every_tensor_is_what_the_gguf_package_reads(tmp_path: Path, kind: Kind) -> None:
    expected = write_tiny_gguf(tmp_path / "tiny.gguf", kind)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    tensors = load_file(tmp_path / "tiny" / "model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, weight in tensors.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_config_says_what_the_metadata_say(tmp_path: Path, tied: bool) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.Q8_0, tied)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "vocab_size": len(TOKENS),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    }
    generation = json.loads((tmp_path / "tiny" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}
    assert ("lm_head.weight" in load_file(tmp_path / "tiny" / "model.safetensors")) is not tied


def test_tokenizer_splits_digits_and_keeps_special_tokens_whole(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.F16)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    text = "<|im_start|>hello hello 12é<|im_end|>\n"
    pieces = ["<|im_start|>", "hello", "Ġhello", "Ġ", "1", "2", "Ã", "©", "<|im_end|>", "Ċ"]
    encoded = tokenizer.encode(text)
    assert encoded.tokens == pieces
    assert encoded.ids == [TOKENS.index(piece) for piece in pieces]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoded.ids) == "hello hello 12é\n"
    assert json.loads((tmp_path / "tiny" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": TEMPLATE,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }


def test_every_tensor_of_another_type_is_named(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    types = {"blk.0.ffn_down.weight": Kind.Q6_K, "blk.1.attn_q.weight": Kind.BF16}
    write_tiny_gguf(source, Kind.Q4_0, blank=types)
    allowed = "(allowed: F32, F16, Q4_0, Q4_1, Q8_0)"
    assert failure(source, tmp_path / "tiny").splitlines() == [
        f"{source} cannot be converted:",
        f"  tensor blk.0.ffn_down.weight has the type Q6_K {allowed}",
        f"  tensor blk.1.attn_q.weight has the type BF16 {allowed}",
    ]
    assert list(tmp_path.iterdir()) == [source]


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_tiny_gguf(source, Kind.F16, without="blk.1.ffn_up.weight")
    assert "  tensor blk.1.ffn_up.weight is missing" in failure(source, tmp_path / "tiny")
    source.write_bytes(source.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_wp.weight"))
    assert "  tensor blk.0.ffn_wp.weight is not part of a plain llama model" in failure(
        source, tmp_path / "tiny"
    )


def test_other_architectures_and_tokenizers_are_refused(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "gemma.gguf", Kind.F16, architecture="gemma")
    message = failure(tmp_path / "gemma.gguf", tmp_path / "tiny")
    assert message.endswith("\n  general.architecture is 'gemma' (allowed: 'llama')")
    write_tiny_gguf(tmp_path / "bpe.gguf", Kind.F16, pre="tekken")
    message = failure(tmp_path / "bpe.gguf", tmp_path / "tiny")
    allowed = "'smollm', 'gpt-2', 'llama-bpe'"
    assert message.endswith(f"\n  tokenizer.ggml.pre is 'tekken' (allowed: {allowed})")


def test_a_file_cut_anywhere_is_broken_and_leaves_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "tiny.gguf", tmp_path / "tiny"
    write_tiny_gguf(source, Kind.Q4_0)
    whole = source.read_bytes()
    for size in [0, 3, 7, *range(8, len(whole), len(whole) // 50), len(whole) - 64]:
        source.write_bytes(whole[:size])
        message = failure(source, target)
        assert message.startswith(str(source))
        assert "is broken" in message or size < 8
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_not_a_gguf_file_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    assert failure(source, tmp_path / "tiny").startswith(f"{source} cannot be read: [Errno 2]")
    source.write_bytes(b"PK\3\4" * 100)
    message = failure(source, tmp_path / "tiny")
    assert message == f"{source} is not a little-endian GGUF file of version 2 or 3."


def test_a_stopped_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.F16)
    monkeypatch.setattr("tokenizers.Tokenizer.save", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.gguf"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", Kind.F16)
    (tmp_path / "tiny").mkdir()
    message = failure(tmp_path / "tiny.gguf", tmp_path / "tiny")
    assert message == f"{tmp_path / 'tiny'} exists. Remove it or name another folder."
    assert list((tmp_path / "tiny").iterdir()) == []
