"""Loading a base: what is read, completed, widened to float32, or refused in one sentence."""

import json
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import load_base, save_model_folder
from orpo_mlx.model.rope import rope_settings
from orpo_mlx.model.tokenizer import save_tokenizer
from tests import tiny

IDS = mx.array([[5, 9, 40, 7, 300, 12]])
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The integers of rows of packed words: a little-endian stream of bits."""
    stream = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    values = stream.reshape(len(packed), -1, bits).astype(np.int64)
    return (values << np.arange(bits)).sum(axis=-1)


def reference(arrays: dict[str, mx.array], path: str, bits: int, mode: str) -> np.ndarray:
    """A stored weight in float64, by the definition of its format."""
    codes = unpacked(np.array(arrays[f"{path}.weight"]), bits)
    scales = np.repeat(np.array(arrays[f"{path}.scales"].astype(mx.float32)), 32, axis=-1)
    if mode == "affine":
        biases = np.repeat(np.array(arrays[f"{path}.biases"].astype(mx.float32)), 32, axis=-1)
        return codes * scales.astype(np.float64) + biases
    sign = np.where(codes >= 8, -1.0, 1.0)
    return sign * E2M1[codes % 8] * 2.0 ** (scales.astype(np.float64) - 127)


@pytest.mark.parametrize(
    ("bits", "mode"), [(b, "affine") for b in (2, 3, 4, 5, 6, 8)] + [(4, "mxfp4")]
)
def test_float32_weights_are_the_stored_ones_exactly(tmp_path: Path, bits: int, mode: str) -> None:
    folder = tiny.save_base(tmp_path / "base", bits=bits, mode=mode)
    base = load_base(str(folder), keep_quantized=False)
    stored: Any = mx.load(str(folder / "model.safetensors"))
    assert base.dequantized
    assert set(base.bits.values()) == {bits}
    now = dict(tree_flatten(base.model.parameters()))
    for path in base.bits:
        expected = reference(stored, path, bits, mode).astype(np.float32)
        np.testing.assert_array_equal(np.array(now[f"{path}.weight"]), expected)
    assert {v.dtype for v in now.values()} == {mx.float32}
    assert "CPU backend: the quantized base is computed in float32." in base.notices


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_every_layer_of_a_mixture_is_dequantized(tmp_path: Path, family: str) -> None:
    folder = tiny.save_base(tmp_path / "base", family, bits=8)
    plain = load_base(str(folder), keep_quantized=False)
    assert len(plain.bits) > 10
    assert not [p for p, m in plain.model.named_modules() if "scales" in m]
    quantized = load_base(str(folder)).model
    quantized.set_dtype(mx.float32)  # so that both add in float32
    difference = mx.abs(plain.model(IDS) - quantized(IDS)).max().item()
    assert difference < 1e-4  # two kernels for the same products


def test_quantized_weights_are_kept_when_asked(quantized_llama: Path) -> None:
    base = load_base(str(quantized_llama), keep_quantized=True)
    assert not base.dequantized
    assert not base.notices
    assert [p for p, m in base.model.named_modules() if "scales" in m] == list(base.bits)


def test_a_model_type_that_exits_on_import_is_an_error(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    write_config(folder, config_of(folder) | {"model_type": "olmo"})
    with pytest.raises(OrpoError, match=r"--model .* cannot be loaded"):
        load_base(str(folder))


def test_the_error_for_a_folder_names_what_is_wrong(tmp_path: Path) -> None:
    def broken(name: str, change: Any) -> str:
        folder = tiny.save_base(tmp_path / name)
        change(folder)
        with pytest.raises(OrpoError) as caught:
            load_base(str(folder))
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(folder), "DIR")

    weights = "model.safetensors"
    assert broken("a", lambda d: (d / "config.json").unlink()) == (
        "--model DIR: no config.json in DIR: not a model folder."
    )
    assert broken("b", lambda d: (d / weights).rename(d / "pytorch_model.bin")) == (
        "--model DIR: no weights: no model*.safetensors in DIR (found pytorch_model.bin)."
    )
    assert broken("c", lambda d: (d / "config.json").write_text('{"model')).startswith(
        "--model DIR cannot be loaded: Unterminated string"
    )
    assert broken("d", lambda d: write_config(d, {})) == (
        "--model DIR cannot be loaded: the key 'model_type' is missing"
    )
    assert broken("e", lambda d: write_config(d, config_of(d) | {"model_type": "nonesuch"})) == (
        "--model DIR cannot be loaded: Model type nonesuch not supported."
    )
    cut = broken("f", lambda d: (d / weights).write_bytes((d / weights).read_bytes()[:999]))
    assert "is damaged; safetensors reports" in cut
    assert cut.endswith("Download or copy it again.")
    deeper = broken("g", lambda d: write_config(d, config_of(d) | {"num_hidden_layers": 4}))
    assert "Missing 9 parameters: model.layers.3" in deeper
    odd = broken("i", lambda d: write_config(d, config_of(d) | {"initializer_range": "small"}))
    assert "field 'initializer_range': TypeError: Field 'initializer_range' expected" in odd
    assert broken("h", lambda d: (d / "tokenizer.json").unlink()).startswith(
        "The tokenizer in DIR cannot be loaded: "
    )


def test_a_hub_id_that_cannot_be_fetched_is_an_error() -> None:
    with pytest.raises(OrpoError, match=r"the Hub did not give it: .*HF_HUB_OFFLINE is set"):
        load_base("nobody/no-such-model")
    with pytest.raises(OrpoError, match="no such folder, and not a Hub id"):
        load_base("./no-such-folder")


def test_an_end_token_can_be_named_and_goes_with_the_tokenizer(llama: Path, tmp_path: Path) -> None:
    base = load_base(str(llama), eos_token="<|endoftext|>")
    ends = base.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert base.tokenizer.eos_token_ids == set(ends)
    save_tokenizer(base.tokenizer, tmp_path)
    again = load_base(str(llama), adapter=tmp_path).tokenizer
    assert again.eos_token_ids == set(ends)
    assert again.eos_token == "<|endoftext|>"
    with pytest.raises(OrpoError, match=r"--eos-token <end>: not a token of this tokenizer\."):
        load_base(str(llama), eos_token="<end>")


def test_a_chat_template_of_ones_own_goes_with_the_tokenizer(llama: Path, tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] }}<|im_end|>"
    base = load_base(str(llama), chat_template=template)
    save_tokenizer(base.tokenizer, tmp_path)
    assert load_base(str(llama), adapter=tmp_path).tokenizer.chat_template == template


def test_a_tokenizer_is_saved_file_by_file(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        save_tokenizer(load_base(str(llama)).tokenizer, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"notes.txt", "tokenizer.json", "generation_config.json"} <= names
    assert not [n for n in names if n.startswith(".")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o644}


def test_rope_settings_are_found_where_transformers_5_writes_them(
    llama: Path, tmp_path: Path
) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    old = tiny.save_base(
        tmp_path / "old", rope_theta=5e5, rope_scaling={"type": "linear"} | scaling
    )
    new = tiny.save_base(tmp_path / "new")
    config = config_of(new)
    del config["rope_theta"]
    write_config(new, config | {"rope_parameters": {"rope_theta": 5e5, **scaling}})
    before, after = load_base(str(old)), load_base(str(new))
    expected = before.model(IDS)
    assert mx.array_equal(after.model(IDS), expected)
    assert not mx.allclose(load_base(str(llama)).model(IDS), expected, atol=1e-3)
    assert not before.notices
    assert after.notices[0].startswith("rope_theta, rope_scaling: read from where transformers 5")
    save_model_folder(after, tmp_path / "saved")
    assert mx.array_equal(mlx_lm.load(str(tmp_path / "saved"))[0](IDS), expected)


def test_rope_settings_are_found_in_a_nested_text_config() -> None:
    layers = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    kinds = ["sliding_attention", "full_attention"] * 2
    text = {"model_type": "gemma3_text", "rope_parameters": layers, "layer_types": kinds}
    settings = rope_settings({"model_type": "gemma3", "text_config": text})
    assert (
        settings["text_config"].items()
        > {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window_pattern": 2,
        }.items()
    )


PLAIN = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("kind", "rope", "word"),
    [
        ("glm", PLAIN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("qwen3_moe", YARN, "rope_scaling"),
        ("dbrx", PLAIN | {"rope_theta": 5e5}, "rope_theta 500000.0"),
        ("olmo3", {FULL: PLAIN, SLIDING: PLAIN | {"rope_theta": 5e3}}, "sliding rope_theta"),
        ("gemma3_text", {FULL: PLAIN, SLIDING: YARN}, "yarn"),
        ("gemma3_text", {FULL: PLAIN, SLIDING: PLAIN}, "irregular"),
    ],
)
def test_rope_settings_that_mlx_lm_does_not_support_are_refused(
    kind: str, rope: dict[str, Any], word: str
) -> None:
    config = {"model_type": kind, "rope_parameters": rope, "layer_types": [SLIDING, FULL, FULL]}
    with pytest.raises(OrpoError, match=f"not support.*{word}|{word}.*not support"):
        rope_settings(config)


@pytest.mark.parametrize("kind", ["gemma4_text", "ministral3", "qwen3", "mellum"])
def test_rope_settings_that_mlx_lm_reads_itself_are_left_alone(kind: str) -> None:
    nested = kind in ("gemma4_text", "mellum")
    rope = {FULL: YARN, SLIDING: PLAIN} if nested else PLAIN
    assert rope_settings({"model_type": kind, "rope_scaling": None, "rope_parameters": rope}) == {}


def test_a_model_folder_keeps_the_data_types_it_came_in(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base", dtype=mx.bfloat16)
    base = load_base(str(folder), keep_quantized=False)
    assert base.notices == ["CPU backend: the bfloat16 base is computed in float32."]
    base.model.layers[0].mlp.up_proj.weight += 1.0
    save_model_folder(base, tmp_path / "saved")
    assert base.model.layers[0].mlp.up_proj.weight.dtype == mx.float32
    again, _ = mlx_lm.load(str(tmp_path / "saved"))
    assert {v.dtype for _, v in tree_flatten(again.parameters())} == {mx.bfloat16}
    weight = base.model.layers[0].mlp.up_proj.weight.astype(mx.bfloat16)
    assert mx.array_equal(again.layers[0].mlp.up_proj.weight, weight)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "saved").iterdir()} == {0o644}
