"""The inverse of `sanitize`, over all families, and what cannot be plain."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_model

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.checkpoint import layout, shards
from orpo_mlx.interop.checkpoint.layout import checkpoint_tensors, plain_parameters
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.model.mlx_lm_api import get_classes
from tests import tiny
from tests.families import FAMILIES
from tests.interop.convert.test_to_mlx import weights

pytestmark = pytest.mark.touchy

# Families of which `sanitize` computes some parameter, and the first of them.
COMPUTED = {
    "gpt_oss": "model.layers.0.mlp.experts.down_proj_blocks",
    "deepseek_v3": "model.layers.0.self_attn.embed_q.weight",
    "qwen3_next": "model.layers.0.input_layernorm.weight",
    "qwen3_5": "language_model.model.layers.0.input_layernorm.weight",
    "falcon_h1": "model.embed_tokens.weight",
}


def parameters_of(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def sanitized(config: dict, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    model_class, arguments = get_classes(config)
    model = model_class(arguments.from_dict(config))
    return model.sanitize(tensors) if hasattr(model, "sanitize") else tensors


def assert_equal(actual: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        assert mx.array_equal(value, expected[name]), name


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - COMPUTED.keys()))
def test_sanitize_of_the_inverse_is_the_model_bit_for_bit(family: str) -> None:
    model, config = tiny.build_model(family)
    parameters = parameters_of(model)
    tensors = dict(checkpoint_tensors(parameters, config))
    assert_equal(sanitized(config, tensors), parameters)


@pytest.mark.parametrize("family", sorted(COMPUTED))
def test_families_with_computed_parameters_are_refused_by_name(family: str) -> None:
    model, config = tiny.build_model(family)
    with pytest.raises(OrpoError) as caught:
        list(checkpoint_tensors(parameters_of(model), config))
    assert str(caught.value).splitlines()[1].strip() == COMPUTED[family]
    assert f"of type {family} " in str(caught.value)


@pytest.mark.parametrize(
    ("family", "module", "count"),
    [
        ("mixtral", "block_sparse_moe.experts.{}.w1.weight", 4),
        ("qwen3_moe", "mlp.experts.{}.gate_proj.weight", 4),
    ],
)
def test_experts_are_unstacked(family: str, module: str, count: int) -> None:
    model, config = tiny.build_model(family)
    tensors = dict(checkpoint_tensors(parameters_of(model), config))
    gate = next(
        v
        for n, v in parameters_of(model).items()
        if n.endswith("1.gate_proj.weight")
        or n.endswith("layers.1.mlp.switch_mlp.gate_proj.weight")
        or n.endswith("layers.1.block_sparse_moe.switch_mlp.gate_proj.weight")
    )
    for expert in range(count):
        assert mx.array_equal(tensors[f"model.layers.1.{module.format(expert)}"], gate[expert])


def test_gate_and_up_are_one_tensor_where_the_checkpoint_has_one() -> None:
    model, config = tiny.build_model("granitemoe")
    parameters = parameters_of(model)
    tensors = dict(checkpoint_tensors(parameters, config))
    group = "model.layers.2.block_sparse_moe.switch_mlp"
    halves = [parameters[f"{group}.{name}_proj.weight"] for name in ("gate", "up")]
    fused = tensors["model.layers.2.block_sparse_moe.input_linear.weight"]
    np.testing.assert_array_equal(fused, np.concatenate(halves, axis=1))


def test_a_swapped_half_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of the first test fails if gate and up are joined the wrong way round."""
    model, config = tiny.build_model("granitemoe")
    rows = layout._row_numbers

    def swapped(wanted: slice | None, count: int) -> np.ndarray:
        numbers = rows(wanted, count)
        return numbers if wanted is None else (numbers + count) % (2 * count)

    monkeypatch.setattr(layout, "_row_numbers", swapped)
    tensors = dict(checkpoint_tensors(parameters_of(model), config))
    with pytest.raises(AssertionError):
        assert_equal(sanitized(config, tensors), parameters_of(model))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(("mode", "bits"), [("affine", 3), ("affine", 8), ("mxfp4", 4)])
def test_quantized_weights_are_dequantized_as_mlx_lm_does(
    family: str, mode: str, bits: int
) -> None:
    model, config = tiny.build_model(family)
    model.set_dtype(mx.bfloat16)
    model, _ = quantize_model(model, config, group_size=32, bits=bits, mode=mode)
    plain = plain_parameters(model)
    assert_equal(plain, parameters_of(dequantize_model(model)))
    assert {value.dtype for value in plain.values()} == {mx.bfloat16}


def test_with_a_type_asked_for_they_are_computed_in_float32() -> None:
    model, config = tiny.build_model("llama")
    model.set_dtype(mx.bfloat16)
    model, _ = quantize_model(model, config, group_size=32, bits=4)
    layer = model.model.layers[0].mlp.up_proj
    wide = [v.astype(mx.float32) for v in (layer.scales, layer.biases)]
    expected = mx.dequantize(layer.weight, *wide, 32, 4)
    name = "model.layers.0.mlp.up_proj.weight"
    assert mx.array_equal(plain_parameters(model, mx.float32)[name], expected)
    half = plain_parameters(model, mx.float16)
    assert mx.array_equal(half[name], expected.astype(mx.float16))
    assert {value.dtype for value in half.values()} == {mx.float16}


def test_experts_with_a_scale_each_are_dequantized_one_by_one() -> None:
    model, config = tiny.build_model("qwen3_moe")
    before = parameters_of(model)
    model, _ = quantize_model(model, config, 16, 4, mode="nvfp4", global_scale=True)
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    plain = plain_parameters(model)[f"{name}.weight"]
    error = mx.abs(plain - before[f"{name}.weight"]).max() / mx.abs(before[f"{name}.weight"]).max()
    assert f"{name}.global_scale" in parameters_of(model)
    assert error < 0.2  # 4-bit floats: half a step of the coarsest, 1 of 6


def dequantize_folder(source: Path, output: Path, **options: Any) -> list[Event]:
    events: list[Event] = []
    convert(ConvertConfig(source=source, output=output, dequantize=True, **options), events.append)
    return events


def test_the_folder_has_a_plain_config_and_the_files_next_to_it(
    quantized_llama: Path, tmp_path: Path
) -> None:
    events = dequantize_folder(quantized_llama, tmp_path / "out")
    assert not [event for event in events if isinstance(event, Notice) and event.warning]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not [key for key in config if key.startswith("quantization")]
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        quantized_llama / "tokenizer.json"
    ).read_bytes()
    expected = parameters_of(dequantize_model(load_model(quantized_llama)[0]))
    assert_equal(weights(tmp_path / "out"), expected)


def test_shards_hold_experts_that_were_stacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.save_base(tmp_path / "base", "mixtral", bits=4)
    monkeypatch.setattr(shards, "save_shards", partial(shards.save_shards, shard_bytes=50_000))
    dequantize_folder(source, tmp_path / "out", dtype="float32")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    model, config = load_model(source)
    tensors = sanitized(config, weights(tmp_path / "out"))
    assert_equal(tensors, plain_parameters(model, mx.float32))


def test_the_text_part_of_a_multimodal_model_becomes_a_model_of_its_own(tmp_path: Path) -> None:
    text = tiny.build_model("gemma3_text")[1] | {"query_pre_attn_scalar": 16}
    source = tiny.save_base(tmp_path / "base", "gemma3_text")
    model, config = tiny.build_model("gemma3_text", model_type="gemma3", text_config=text)
    save_model(source, model)
    (source / "config.json").write_text(json.dumps(config))
    events = dequantize_folder(source, tmp_path / "out")
    assert Notice("mlx-lm keeps only the text part of gemma3: a gemma3_text.") in events
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    again, _ = load_model(tmp_path / "out")
    ids = mx.array([[5, 7, 11, 13]])
    assert mx.array_equal(again(ids), model(ids))


def test_what_transformers_was_not_tried_with_is_a_warning(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base", "internlm2")
    events = dequantize_folder(source, tmp_path / "out")
    text = "No test of ours loads a plain internlm2 in transformers: check that it loads."
    assert any(isinstance(e, Notice) and e.warning and e.text.startswith(text) for e in events)


def test_what_mlx_lm_takes_back_under_its_own_names_alone_is_refused(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base", "dbrx")
    with pytest.raises(
        OrpoError, match="type dbrx cannot be written as a Hugging Face folder: its"
    ):
        dequantize_folder(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_gguf_file_is_not_dequantized_but_converted(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match="x.gguf becomes a plain folder anyway"):
        dequantize_folder(tmp_path / "x.gguf", tmp_path / "out")
