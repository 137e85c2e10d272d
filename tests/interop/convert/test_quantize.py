"""What can be quantized or cast, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests import tiny
from tests.interop.convert.test_to_mlx import converted, failure, notices, weights

pytestmark = pytest.mark.touchy


def test_groups_that_do_not_divide_rows_are_named_with_those_that_do(
    llama: Path, tmp_path: Path
) -> None:
    message = failure(llama, tmp_path / "out", bits=4)
    assert message.splitlines()[0] == "Groups of 64 (--group-size) do not fit:"
    assert "  model.layers.0.mlp.down_proj: its rows have 96 weights (allowed: 32)" in message
    assert list(tmp_path.iterdir()) == []


def test_layers_that_no_group_size_fits_stay_as_they_are(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base", intermediate_size=72)
    _, events = converted(source, tmp_path / "out", bits=4)
    assert "3 layers stay as they are (first model.layers." in notices(events)
    assert "model.layers.0.mlp.down_proj.scales" not in weights(tmp_path / "out")
    assert "model.layers.0.mlp.up_proj.scales" in weights(tmp_path / "out")


def test_a_model_with_no_fitting_layer_is_refused(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base", hidden_size=72, intermediate_size=72, head_dim=18)
    message = failure(source, tmp_path / "out", bits=4)
    assert "model.layers.2.mlp.up_proj: its rows have 72 weights (none divides them)" in message


def test_what_is_quantized_already_is_refused(quantized_llama: Path, tmp_path: Path) -> None:
    message = failure(quantized_llama, tmp_path / "out", bits=8)
    assert message.startswith(f"{quantized_llama} is quantized already (4 bits).")


def test_a_recipe_without_its_layers_is_refused(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base", "starcoder2")
    message = failure(source, tmp_path / "out", recipe="mixed_3_6", group_size=32)
    assert message.startswith("--recipe mixed_3_6: mlx-lm mixes only where layers have a down_proj")


LARGE = {"model.layers.1.mlp.down_proj.weight": 1e5, "model.layers.2.input_layernorm.weight": 7e4}


def with_large_values(folder: Path, config_dtype: str | None = None, factor: float = 1.0) -> Path:
    """A float32 base with two values that float16 does not hold, times a factor."""
    tiny.save_base(folder)
    file = folder / "model.safetensors"
    tensors = weights(folder)
    for name, value in LARGE.items():
        flat = np.array(tensors[name]).reshape(-1)
        flat[5] = value * factor
        tensors[name] = mx.array(flat.reshape(tensors[name].shape))
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
    if config_dtype:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": config_dtype}))
    return folder


@pytest.mark.parametrize(
    ("options", "config_dtype", "named"),
    [
        ({"dtype": "float16"}, None, list(LARGE)),
        ({}, "float16", list(LARGE)),
        (
            {"dtype": "float16", "bits": 4, "group_size": 32},
            None,
            ["down_proj.weight", "down_proj.scales", "input_layernorm.weight"],
        ),
        ({"dtype": "float16", "mode": "mxfp4"}, None, list(LARGE)),
        ({"mode": "mxfp8"}, "float16", list(LARGE)),
        ({"dtype": "float16", "mode": "nvfp4"}, None, list(LARGE)),
        ({"dequantize": True, "dtype": "float16"}, None, list(LARGE)),
    ],
)
def test_values_that_float16_does_not_hold_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], config_dtype: str | None, named: list[str]
) -> None:
    base = with_large_values(tmp_path / "base", config_dtype)
    message = failure(base, tmp_path / "out", **options)
    assert message.startswith("These weights would be written with NaN or infinite values:")
    assert all(f"{name} (F16)" in message for name in named)
    assert message.count("(F16)") == len(named) + (message.count("biases") > 0)
    assert "Give --dtype bfloat16 or float32" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{}, {"bits": 4, "group_size": 32}, {"mode": "mxfp4"}, {"mode": "nvfp4"}]
)
def test_a_damaged_base_is_not_blamed_on_the_type(tmp_path: Path, options: dict[str, Any]) -> None:
    base = with_large_values(tmp_path / "base", factor=float("nan"))
    message = failure(base, tmp_path / "out", **options)
    assert all(f"{name} (F32)" in message for name in LARGE)
    assert message.endswith("\nThe base itself is damaged: take another copy of it.")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_types_that_hold_them_take_large_values(tmp_path: Path, dtype: str) -> None:
    base = with_large_values(tmp_path / "base")
    converted(base, tmp_path / "out", dtype=dtype)
    for name, value in LARGE.items():
        assert weights(tmp_path / "out")[name].max().item() == pytest.approx(value, rel=2**-8)
