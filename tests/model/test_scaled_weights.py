"""Weights stored as codes and scales: decoded where that is understood, else refused by name."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.model.base import load_base, load_weights
from tests import tiny
from tests.interop.adapted import adapted, fused, fused_logits, logits
from tests.model.fp8_folders import (
    Stored,
    change_config,
    e4m3,
    encoded,
    in_blocks,
    is_layer,
    per_expert,
    per_row,
    save,
    save_fp8,
    tensors_of,
)

STATIC = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}


def blocks(rows: int, columns: int, **more: Any) -> dict[str, Any]:
    return {
        "scales_of": in_blocks(rows, columns),
        "block": (rows, columns),
        "quantization": {"quant_method": "fp8", "weight_block_size": [rows, columns], **more},
    }


SCHEMES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "per tensor, in a wrapper": {"wrapper": "mistral3"},
    "per tensor, llama": {"family": "llama"},
    "per row": {"family": "qwen2", "scales_of": per_row},
    "in blocks": {"family": "qwen3", **blocks(16, 32)},
    "in blocks that are cut": {"family": "qwen3", **blocks(48, 40)},
    "one block": {"family": "llama", **blocks(128, 128)},
    "experts in blocks": {"family": "qwen3_moe", **blocks(16, 24)},
    "per expert": {"family": "qwen3_moe", "scales_of": per_expert},
    "exponents": {"family": "llama", "exponents": True, **blocks(32, 32, scale_fmt="ue8m0")},
    "rows of 32": {
        "family": "llama",
        "exponents": True,
        **blocks(1, 32),
        "quantization": {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fp8_is_decoded_as_its_format_defines(tmp_path: Path, scheme: str) -> None:
    meant = save_fp8(tmp_path / "base", **SCHEMES[scheme])
    model, config, notices = load_weights(tmp_path / "base", "base")
    now = dict(tree_flatten(model.parameters()))
    assert now.keys() == meant.keys()
    coded, powers = 0, "exponents" in SCHEMES[scheme]
    for name, value in now.items():
        # Powers of 2 are of no type with a mantissa: transformers then takes bfloat16, exact here.
        assert value.dtype == (
            mx.bfloat16 if is_layer(name, meant[name]) and powers else mx.float32
        )
        # One rounding to float32 of a product that is exact in float64.
        read = np.array(value.astype(mx.float32))
        np.testing.assert_allclose(read, meant[name], rtol=6e-8, err_msg=name)
        coded += is_layer(name, meant[name])
    assert coded > 10
    assert "quantization_config" not in config
    dtype = "bfloat16" if powers else "float32"
    assert notices[0] == f"{coded} weights stored in FP8 are decoded to {dtype}."


def test_fp8_is_decoded_to_the_type_of_the_config(tmp_path: Path) -> None:
    meant = save_fp8(tmp_path / "base", torch_dtype="bfloat16")
    weight = load_weights(tmp_path / "base", "base")[0].layers[0].self_attn.q_proj.weight
    assert weight.dtype == mx.bfloat16
    expected = mx.array(meant["model.layers.0.self_attn.q_proj.weight"].astype(np.float32))
    assert mx.array_equal(weight, expected.astype(mx.bfloat16))


def test_families_that_decode_by_themselves_get_the_same_numbers(tmp_path: Path) -> None:
    scheme = blocks(128, 128)
    save_fp8(tmp_path / "base", "deepseek_v3", dimensions=(2,), torch_dtype="bfloat16", **scheme)
    theirs = dict(tree_flatten(load_model(tmp_path / "base")[0].parameters()))
    ours = dict(tree_flatten(load_weights(tmp_path / "base", "base")[0].parameters()))
    assert ours.keys() == theirs.keys()
    assert not [n for n, v in theirs.items() if not mx.array_equal(v, ours[n])]


def test_weights_cast_to_fp8_without_scales_are_the_numbers_themselves(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    stored = tensors_of(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    codes = encoded(stored[name][1])
    save(folder / "model.safetensors", stored | {name: ("F8_E4M3", codes)})
    weight = load_weights(folder, "base")[0].layers[1].mlp.up_proj.weight
    np.testing.assert_array_equal(np.array(weight.astype(mx.float32)), e4m3(codes))


def test_an_fp8_base_is_converted_trained_and_fused_by_its_numbers(tmp_path: Path) -> None:
    base, mlx, run = tmp_path / "base", tmp_path / "mlx", tmp_path / "run"
    meant = save_fp8(base)
    events: list[Any] = []
    convert(ConvertConfig(source=str(base), output=mlx), events.append)
    assert events[0].text == "21 weights stored in FP8 are decoded to float32."
    made = mx.load(str(mlx / "model.safetensors"))
    assert isinstance(made, dict)
    for name, value in made.items():
        np.testing.assert_allclose(np.array(value), meant[name], rtol=6e-8)
    assert "quantization_config" not in json.loads((mlx / "config.json").read_text())
    plain = tmp_path / "plain"
    convert(ConvertConfig(source=str(base), output=plain, dequantize=True), lambda event: None)
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    assert mx.array_equal(fused_logits(plain), logits(base))
    adapted(base, run, ["all-linear"])
    sentence = (
        rf"^{base} stores weights in FP8 \(.* and \d+ more tensors\)\. Convert it to an MLX folder "
        rf"first, and give that to --model: orpo-mlx convert {base} --output FOLDER$"
    )
    for dequantize in (False, True):
        with pytest.raises(OrpoError, match=sentence):
            fused(run, tmp_path / "out", dequantize=dequantize)
    fused(run, tmp_path / "out", model=str(mlx), verify=True)
    assert mx.allclose(fused_logits(tmp_path / "out"), logits(base, run), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        STATIC,
        {"quant_method": "mxfp4"},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ],
    ids=lambda settings: settings["quant_method"],
)
def test_settings_over_plain_weights_are_dropped(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = tiny.save_base(tmp_path / "base", quantization_config=settings)
    config = load_weights(folder, "base")[1]
    assert "quantization_config" not in config
    adapted(folder, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "out", verify=True)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def packed_by(folder: Path, tool: dict[str, Any], **leaves: tuple[str, np.ndarray]) -> None:
    """A tiny llama whose first q_proj is stored by a tool as these tensors."""
    tiny.save_base(folder)
    stored: Stored = tensors_of(folder)
    path = "model.layers.0.self_attn.q_proj."
    del stored[f"{path}weight"]
    stored |= {path + leaf.replace("__", "."): value for leaf, value in leaves.items()}
    save(folder / "model.safetensors", stored)
    if tool:
        change_config(folder, quantization_config=tool)


NF4 = ("U8", np.zeros((2048, 1), np.uint8))
INT8 = ("I8", np.ones((64, 64), np.int8))
F8 = ("F8_E4M3", np.full((64, 64), 56, np.uint8))
INT4 = ("I32", np.ones((64, 8), np.int32))
ONE = ("F32", np.ones((64, 1), np.float32))
GROUP = {"weights": {"num_bits": 8, "symmetric": True}}
SYMMETRIC = {"weights": {"num_bits": 4, "symmetric": True}}
FOREIGN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"weight": NF4, "weight__absmax": ONE},
        "bitsandbytes (nf4)",
    ),
    ({"load_in_8bit": True}, {"weight": INT8, "SCB": ONE}, "bitsandbytes"),
    (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"weight": F8, "weight_scale": ONE},
        "compressed-tensors (float-quantized)",
    ),
    (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        {"weight": INT8, "weight_scale": ONE},
        "compressed-tensors (int-quantized)",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": GROUP},
        },
        {"weight_packed": INT4, "weight_scale": ONE},
        "compressed-tensors (pack-quantized)",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": SYMMETRIC},
        },
        {"weight_packed": INT4, "weight_scale": ONE},
        "compressed-tensors (pack-quantized)",
    ),
    ({"quant_method": "fbgemm_fp8"}, {"weight": F8, "weight_scale": ONE}, "fbgemm_fp8"),
    (
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"weight": F8, "weight_scale": ONE},
        "modelopt (FP8)",
    ),
    ({"quant_method": "gptq", "bits": 4}, {"qweight": INT4, "scales": ONE, "g_idx": INT4}, "gptq"),
    ({"quant_method": "quanto"}, {"weight___data": INT8, "weight___scale": ONE}, "quanto"),
    ({"quant_method": "hqq"}, {"W_q": NF4}, "hqq"),
]


@pytest.mark.parametrize(("tool", "leaves", "name"), FOREIGN)
def test_what_is_not_read_is_refused_by_the_name_of_its_tool(
    tmp_path: Path, tool: dict[str, Any], leaves: dict[str, Any], name: str
) -> None:
    packed_by(tmp_path / "base", tool, **leaves)
    with pytest.raises(OrpoError) as error:
        load_base(str(tmp_path / "base"))
    text = str(error.value)
    assert f"cannot be loaded: its weights are packed by {name}, " in text
    assert text.endswith("Take the original in 16 bits, or a copy in MLX's format.")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"weight": F8, "weight_scale": ONE}, r"q_proj.weight_scale is not read"),
        ({"weight": F8, "scale_weight": ONE}, r"q_proj.scale_weight is not read"),
        ({"weight": F8, "weight_scale_inv": ("F32", np.ones((3, 2), np.float32))}, r"\(3, 2\)"),
        ({"weight": ("F32", np.ones((64, 64), np.float32)), "weight_scale_inv": ONE}, "is F32"),
        ({"weight": INT8, "weight_scale_inv": ONE}, "its type is I8"),
        ({"weight": INT8}, r"q_proj.weight: int8"),
        ({"weight": ("U8", np.ones((64, 64), np.uint8))}, r"q_proj.weight: uint8"),
        ({"weight": ("F8_E5M2", np.ones((64, 64), np.uint8))}, "F8_E5M2"),
    ],
)
def test_codes_of_an_unknown_scale_are_never_numbers(
    tmp_path: Path, leaves: dict[str, Any], words: str
) -> None:
    packed_by(tmp_path / "base", {}, **leaves)
    with pytest.raises(OrpoError, match=words):
        load_base(str(tmp_path / "base"))


def test_an_fp8_weight_without_its_scale_is_named(tmp_path: Path) -> None:
    packed_by(tmp_path / "base", STATIC, weight=F8)
    with pytest.raises(OrpoError, match=r"q_proj\.weight: it has no .*q_proj\.weight_scale_inv"):
        load_base(str(tmp_path / "base"))
