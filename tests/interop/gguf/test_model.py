"""Whole models as GGUF, read back by the `gguf` package."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader
from mlx_lm.models.rope_utils import Llama3RoPE
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.gguf import writer
from orpo_mlx.interop.gguf.metadata import rope_factors
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.interop import adapted as moving
from tests.interop.gguf.test_adapter import changes, export, interleaved, read, refusal, weights
from tests.parity.peft_bases import random_adapter

pytestmark = pytest.mark.touchy

BLOCK = 32
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter on some layers of the tiny llama. Do not write there."""
    folder = tmp_path_factory.mktemp("adapter") / "polite"
    random_adapter(llama, folder, ["q_proj", "down_proj"])
    return folder


def adapted(base: Path, tmp_path: Path) -> Path:
    random_adapter(base, tmp_path / "run", ["q_proj"])
    return tmp_path / "run"


def types(file: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in GGUFReader(file).tensors}


def test_metadata_are_those_of_the_config(llama: Path, run: Path, tmp_path: Path) -> None:
    done, _ = export(run, tmp_path / "out", fused=True, outtype="q8_0")
    assert (done.files, done.outtype, done.tensors) == (["Modelfile", "model.gguf"], "q8_0", 0)
    fields, _ = read(tmp_path / "out" / "model.gguf")
    config = json.loads((llama / "config.json").read_text())
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": config["rope_theta"],
        "llama.vocab_size": config["vocab_size"],
    }
    assert {key: fields[key] for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == np.float32(config["rms_norm_eps"])


def test_fused_weights_are_base_and_change(llama: Path, run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", fused=True, outtype="f32")
    _, tensors = read(tmp_path / "out" / "model.gguf")
    before, moved = weights(llama), changes(llama, run)
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v")):
        path = f"model.layers.2.self_attn.{ours}"
        whole = before[f"{path}.weight"] + moved.get(path, 0.0)
        expected = whole if ours == "v_proj" else interleaved(whole, 16)
        np.testing.assert_allclose(tensors[f"blk.2.{theirs}.weight"], expected, atol=1e-6, rtol=0)
    same = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    }
    for theirs, ours in same.items():
        np.testing.assert_array_equal(tensors[f"{theirs}.weight"], before[f"{ours}.weight"])
    assert len(tensors) == len(before)


def test_a_quantized_base_is_fused_as_the_adapter_saw_it(
    quantized_llama: Path, tmp_path: Path
) -> None:
    run = adapted(quantized_llama, tmp_path)
    export(run, tmp_path / "out", fused=True, outtype="f32")
    _, tensors = read(tmp_path / "out" / "model.gguf")
    plain = load_base(str(quantized_llama), keep_quantized=False).model
    stored = dict(mx.load(str(run / "adapters.safetensors")))
    path = "model.layers.1.self_attn.q_proj"
    change = 2.0 * (stored[f"{path}.lora_a"] @ stored[f"{path}.lora_b"]).T
    whole = np.array(plain.layers[1].self_attn.q_proj.weight + change)
    actual = tensors["blk.1.attn_q.weight"]
    np.testing.assert_allclose(actual, interleaved(whole, 16), atol=1e-6, rtol=0)
    expected = np.array(plain.layers[1].mlp.up_proj.weight)
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"], expected)


@pytest.mark.parametrize(
    ("kind", "bits"), [("lora", None), ("lora", 4), ("dora", None), ("dora", 4), ("full", None)]
)
def test_fused_weights_are_those_of_fuse_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bits: int | None
) -> None:
    monkeypatch.setattr("orpo_mlx.model.updates.ROWS_BYTES", 10_000)  # several pieces a weight
    base = tiny.save_base(tmp_path / "base", bits=bits)
    moving.adapted(base, tmp_path / "run", ["v_proj", "down_proj"], kind=kind)
    export(tmp_path / "run", tmp_path / "gguf", fused=True, outtype="f32")
    moving.fused(tmp_path / "run", tmp_path / "mlx", dequantize=True, dtype="float32")
    _, tensors = read(tmp_path / "gguf" / "model.gguf")
    expected = weights(tmp_path / "mlx")
    for theirs, ours in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        for layer in range(3):
            np.testing.assert_array_equal(
                tensors[f"blk.{layer}.{theirs}.weight"],
                expected[f"model.layers.{layer}.{ours}.weight"],
            )


def test_each_type_rounds_as_it_says(llama: Path, run: Path, tmp_path: Path) -> None:
    for kind in ("f16", "q8_0"):
        export(run, tmp_path / kind, with_base=True, outtype=kind)
    before = weights(llama)["model.layers.0.mlp.up_proj.weight"]  # (96, 64)
    _, half = read(tmp_path / "f16" / "base.gguf")
    np.testing.assert_array_equal(half["blk.0.ffn_up.weight"], before.astype(np.float16))
    file = tmp_path / "q8_0" / "base.gguf"
    (stored,) = (t for t in GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight")
    blocks = np.ascontiguousarray(stored.data).view([("scale", "<f2"), ("quants", "i1", BLOCK)])
    actual = (blocks["scale"][..., None].astype(np.float32) * blocks["quants"]).reshape(96, 64)
    steps = np.abs(before.reshape(96, 2, BLOCK)).max(-1, keepdims=True) / 127
    # half a step, and the scale itself is rounded to 11 bits
    assert np.all(np.abs(actual - before).reshape(96, 2, BLOCK) <= 0.57 * steps)
    kinds = types(file)
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == "Q8_0"
    assert set(types(tmp_path / "q8_0" / "adapter.gguf").values()) == {"F32"}


def test_rows_that_are_not_whole_blocks_stay_half_precision(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "mixtral", intermediate_size=80, num_local_experts=4)
    export(adapted(base, tmp_path), tmp_path / "out", fused=True, outtype="q8_0")
    kinds = types(tmp_path / "out" / "model.gguf")
    assert kinds["blk.0.ffn_down_exps.weight"] == "F16"  # (4, 64, 80)
    assert kinds["blk.0.ffn_up_exps.weight"] == "Q8_0"  # (4, 80, 64)
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"


def test_tokens_and_ends_are_the_tokenizers(llama: Path, run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", fused=True)
    fields, _ = read(tmp_path / "out" / "model.gguf")
    stored = json.loads((llama / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == tiny.VOCABULARY
    assert [tokens.index(word) for word in vocabulary] == list(vocabulary.values())
    assert [kinds[i] for i in (0, 1, 2, 3)] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.merges"] == [" ".join(m) for m in stored["model"]["merges"]]
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == vocabulary["<|im_end|>"]
    assert fields["tokenizer.ggml.padding_token_id"] == vocabulary["<|endoftext|>"]
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == tiny.CHATML


def test_rows_of_the_embedding_without_a_token_are_named_as_unused(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", vocab_size=tiny.VOCABULARY + 5)
    export(adapted(base, tmp_path), tmp_path / "out", fused=True)
    fields, _ = read(tmp_path / "out" / "model.gguf")
    last = tiny.VOCABULARY + 4
    assert fields["tokenizer.ggml.tokens"][last] == f"[PAD{last}]"
    assert fields["tokenizer.ggml.token_type"][last] == 5


def test_every_end_token_ends_a_turn(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 2]}))
    export(adapted(base, tmp_path), tmp_path / "out", fused=True)
    fields, _ = read(tmp_path / "out" / "model.gguf")
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.eot_token_id"] == 0


def test_llama_3s_rope_factors_are_mlx_lms() -> None:
    args = FakeArgs(LLAMA3)
    rope = Llama3RoPE(args.head_dim, base=args.rope_theta, scaling_config=LLAMA3)
    plain = args.rope_theta ** (np.arange(0, args.head_dim, 2) / args.head_dim)
    actual = rope_factors(args)
    assert actual is not None
    # float32 on one side
    np.testing.assert_allclose(actual, np.array(rope._freqs) / plain, rtol=2e-6)
    assert rope_factors(FakeArgs(None)) is None


class FakeArgs(NamedTuple):
    rope_scaling: dict[str, Any] | None
    head_dim: int = 64
    rope_theta: float = 500000.0


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "rope_scaling of type 'yarn' (allowed: linear, llama3)",
        ),
        (
            "llama",
            {
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_hidden_layers": 4,
            },
            "layer_types with sliding_attention",
        ),
        ("smollm3", {}, "no_rope_layers (allowed: every fourth layer without rope)"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob false"),
        (
            "qwen3_moe",
            {"mlp_only_layers": [0]},
            "layers without experts (mlp_only_layers, decoder_sparse_step)",
        ),
    ],
)
def test_settings_that_llama_cpp_does_not_support_are_named(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    base = tiny.save_base(tmp_path / "base", family, **changes)
    actual = refusal(adapted(base, tmp_path), tmp_path, fused=True)
    assert actual.startswith(
        f"--to gguf: these settings of the model are not written:\n  {message}\nWrite a Hugging"
    )


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    assert isinstance(tokenizer.backend_tokenizer.model, models.BPE)
    tokenizer.save_pretrained(str(base))
    actual = refusal(adapted(base, tmp_path), tmp_path, fused=True)
    assert actual.startswith("--to gguf: this tokenizer cannot be written (allowed: byte-level BPE")


def test_a_value_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    stored = dict(mx.load(str(base / "model.safetensors")))
    stored["model.layers.0.mlp.up_proj.weight"] *= 1e7
    mx.save_safetensors(str(base / "model.safetensors"), stored, metadata={"format": "mlx"})
    run = adapted(base, tmp_path)
    actual = refusal(run, tmp_path, fused=True)
    assert actual.startswith("blk.0.ffn_up.weight has a value of 1.2")
    assert actual.endswith("more than float16 can hold: use --outtype f32.")
    export(run, tmp_path / "out", fused=True, outtype="f32")


def test_a_disk_without_room_is_reported_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert refusal(run, tmp_path, fused=True).endswith(
        "Make room, or name an --output on another disk."
    )


def test_a_failing_write_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = writer._stored

    def full(name: str, *rest: Any) -> np.ndarray:
        if name == "output_norm.weight":
            raise OSError(28, "No space left on device")
        return whole(name, *rest)

    monkeypatch.setattr(writer, "_stored", full)
    with pytest.raises(OrpoError, match=r"cannot be written: the disk is full\."):
        export(run, tmp_path / "out", fused=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "template",
    [
        tiny.CHATML.replace("<|im_end|>\n", "<|im_end|>"),
        tiny.CHATML.replace("message['content']", "message['content'] | lower"),
        "{% if messages | length > 2 %}{{ raise_exception('one turn alone') }}{% endif %}",
    ],
)
def test_another_template_is_left_to_the_gguf_file(tmp_path: Path, template: str) -> None:
    base = tiny.save_base(tmp_path / "base", template=template)
    export(adapted(base, tmp_path), tmp_path / "out", fused=True)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.endswith("# Ollama takes the chat template from the GGUF file.\n")
    fields, _ = read(tmp_path / "out" / "model.gguf")
    assert fields["tokenizer.chat_template"] == template


def test_a_default_system_message_is_kept(tmp_path: Path) -> None:
    first = "{% if messages[0]['role'] != 'system' %}"
    default = f"{first}<|im_start|>system\nBe brief.<|im_end|>\n{{% endif %}}"
    base = tiny.save_base(tmp_path / "base", template=default + tiny.CHATML)
    export(adapted(base, tmp_path), tmp_path / "out", fused=True)
    assert (tmp_path / "out" / "Modelfile").read_text().endswith('"""\nSYSTEM """Be brief."""\n')
