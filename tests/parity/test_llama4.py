"""Llama 4 as transformers 5 saves it: its text part asks mlx-lm's wrapper for its arguments."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.model.base import load_base
from orpo_mlx.model.rope import rope_settings
from tests import tiny
from tests.parity.peft_bases import draw_weights
from tests.parity.test_rope import COMMON, LLAMA3, ROPE

pytestmark = [pytest.mark.parity, pytest.mark.touchy]
TEXT = COMMON | {
    "head_dim": 16,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 512,
    "use_qk_norm": True,
    "attn_temperature_tuning": False,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
}


def saved(folder: Path, rope: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    text = json.loads(json.dumps(TEXT | {"rope_parameters": rope}))
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=dict(VISION))
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    draw_weights(model)
    model.save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("rope", [ROPE, LLAMA3], ids=["default", "llama3"])
def test_logits_equal_those_of_transformers(tmp_path: Path, rope: dict[str, Any]) -> None:
    import torch

    theirs = saved(tmp_path / "base", rope)
    stored = json.loads((tmp_path / "base" / "config.json").read_text())["text_config"]
    assert "rope_theta" not in stored and "rope_scaling" not in stored
    ids = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (2, 40))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    ours = load_base(str(tmp_path / "base"), keep_quantized=False).model
    # experts are weighted in another order
    np.testing.assert_allclose(np.array(ours(mx.array(ids))), expected, atol=5e-4, rtol=0)
    options = ConvertConfig(source=str(tmp_path / "base"), output=tmp_path / "mlx")
    convert(options, lambda event: None)
    again, _ = mlx_lm.load(str(tmp_path / "mlx"))
    np.testing.assert_allclose(np.array(again(mx.array(ids))), expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_vl_moe", "kimi_vl"])
def test_other_wrappers_are_asked_as_before(kind: str) -> None:
    inner = {
        "gemma3": "gemma3_text",
        "mistral3": "ministral3",
        "qwen3_vl_moe": "qwen3_moe",
        "kimi_vl": "deepseek_v3",
    }[kind]
    text = {"model_type": inner, "rope_parameters": ROPE}
    settings = rope_settings({"model_type": kind, "text_config": text})
    alone = rope_settings(text)
    assert settings.get("text_config", text) == text | alone
