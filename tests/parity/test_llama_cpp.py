"""Exported GGUF files in llama.cpp: the numbers of mlx-lm, for adapters and fused models."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.interop.gguf.names import PROVEN
from orpo_mlx.model.base import load_weights
from tests import tiny
from tests.families import EXPERTS
from tests.parity import llama_cpp
from tests.parity.peft_bases import random_adapter

pytestmark = [pytest.mark.long, pytest.mark.parity]

# float32 on both sides, logits up to 5, sums in another order: 2.6e-6 measured
SAME = 2e-5
MOVED = 0.3  # what an adapter must change at least, or the comparison says nothing

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LAST_LAYERS = 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": EXPERTS,
    "olmo2": {},
    "phi3": {"tie_word_embeddings": False},
    "glm4": {},
}
ROUTERS = {"mixtral": ["block_sparse_moe.gate"], "qwen3_moe": ["mlp.gate"]}
# A base, what is adapted, and how deep.
CASES: dict[str, tuple[str, dict[str, Any], list[str], int]] = {
    **{f: (f, c, ["all-linear", *ROUTERS.get(f, [])], -1) for f, c in FAMILIES.items()},
    "last blocks alone": ("qwen2", {}, ["q_proj", "down_proj"], LAST_LAYERS),
    "head and embeddings apart": (
        "llama",
        {"tie_word_embeddings": False},
        ["embed_tokens", "lm_head", "q_proj"],
        -1,
    ),
    "biases of attention": ("llama", {"attention_bias": True}, ["all-linear"], -1),
    "Llama 3's rope": ("llama", {"rope_scaling": LLAMA3}, ["all-linear"], -1),
    "linear rope": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, ["k_proj"], -1),
}


def test_every_proven_architecture_is_here() -> None:
    assert set(FAMILIES) == set(PROVEN)


def save_base(folder: Path, family: str, changes: dict[str, Any]) -> Path:
    """A tiny base; mistral is llama by another name."""
    known = "llama" if family == "mistral" else family
    return tiny.save_base(folder, known, seed=3, **changes, model_type=family)


def ids(rows: int = 1, length: int = 40) -> list[list[int]]:
    ids: list[list[int]] = np.random.default_rng(7).integers(3, 300, (rows, length)).tolist()
    return ids


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array(ids())))


def export(adapter: Path, output: Path, **settings: Any) -> Path:
    config = ExportConfig(adapter=adapter, to="gguf", output=output, **settings)
    export_gguf(config, lambda event: None)
    return output


@pytest.mark.parametrize("case", CASES)
def test_base_adapter_and_fused_model_give_mlx_lms_logits(
    node: Path, tmp_path: Path, case: str
) -> None:
    family, changes, targets, layers = CASES[case]
    base = save_base(tmp_path / "base", family, changes)
    model, _, _ = load_weights(base, str(base))
    plain = logits(model)
    adapted = logits(random_adapter(base, tmp_path / "run", targets, num_layers=layers))
    assert np.abs(adapted - plain).max() > MOVED
    both = export(tmp_path / "run", tmp_path / "both", with_base=True, outtype="f32")
    fused = export(tmp_path / "run", tmp_path / "fused", fused=True, outtype="f32")
    jobs = [{"rows": ids()}, {"rows": ids(), "lora": str(both / "adapter.gguf")}]
    results = llama_cpp.evaluate(node, both / "base.gguf", jobs, tmp_path)
    results += llama_cpp.evaluate(node, fused / "model.gguf", jobs[:1], tmp_path)
    for theirs, ours in zip(results, (plain, adapted, adapted), strict=True):
        np.testing.assert_allclose(np.array(theirs), ours, atol=SAME, rtol=0)
