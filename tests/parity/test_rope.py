"""Folders saved by transformers 5 with a rope theta of their own give transformers' logits."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.parity.peft_bases import draw_weights

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

COMMON: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA3 = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = ROPE | {"rope_type": "linear", "factor": 4.0}
LOCAL = {"rope_type": "default", "rope_theta": 5000.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
    "tie_word_embeddings": True,
}
SLIDING, FULL = "sliding_attention", "full_attention"
KINDS = [SLIDING, SLIDING, FULL, SLIDING]
DELTA = EXPERTS | {
    "shared_expert_intermediate_size": 32,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4,
}  # fmt: skip

# Family, what its config adds, and the tolerance: float32 of some hundred additions, but for
# starcoder2 (mlx-lm's own GELU), the scaled ones (granite) and recurrent ones.
CASES: list[tuple[str, dict[str, Any], float]] = [
    ("llama", {}, 3e-5),
    ("llama", {"rope_parameters": LLAMA3}, 3e-5),
    ("llama", {"rope_parameters": YARN}, 3e-5),
    ("llama", {"rope_parameters": LINEAR}, 3e-5),
    ("mistral", {}, 3e-5),
    ("qwen2", {}, 3e-5),
    ("qwen2", {"rope_parameters": YARN}, 3e-5),
    ("qwen3", {"head_dim": 16}, 3e-5),
    ("gemma2", GEMMA, 3e-5),
    (
        "gemma3_text",
        GEMMA | {"layer_types": KINDS, "rope_parameters": {SLIDING: LOCAL, FULL: LINEAR}},
        3e-5,
    ),
    ("phi3", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, 5e-5),
    ("olmo2", {}, 3e-5),
    ("olmo3", {"sliding_window": 64, "rope_parameters": {SLIDING: ROPE, FULL: YARN}}, 3e-5),
    ("granite", {}, 2e-4),
    ("glm4", {"head_dim": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, 3e-5),
    ("glm4_moe", DEEPSEEK | {"head_dim": 16}, 3e-5),
    ("smollm3", {}, 3e-5),
    ("starcoder2", {}, 5e-3),
    ("cohere2", {"sliding_window": 64, "tie_word_embeddings": True}, 3e-5),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 3e-5),
    ("qwen3_moe", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}, 3e-5),
    ("deepseek_v3", DEEPSEEK, 3e-5),
    ("qwen3_next", DELTA | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, 5e-4),
]
REFUSED = [
    ("glm", {"head_dim": 16}, "partial_rotary_factor 0.5"),
    ("qwen3_moe", EXPERTS | {"head_dim": 16, "rope_parameters": YARN}, "rope_scaling .*yarn"),
]

in_every_case = pytest.mark.parametrize(
    ("family", "changes", "tolerance"),
    CASES,
    ids=[f"{f}-{c.get('rope_parameters', ROPE).get('rope_type', 'nested')}" for f, c, _ in CASES],
)


def saved_by_transformers(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """A random model, saved with a tokenizer; weights large enough for attention to matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    # A copy: some config classes write into the mapping that they are given.
    settings = json.loads(json.dumps(COMMON | {"rope_parameters": ROPE} | changes))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    model = model.float().eval()
    draw_weights(model)
    model.save_pretrained(folder)
    tiny.build_tokenizer().save_pretrained(str(folder))
    return model


@in_every_case
def test_logits_equal_those_of_transformers(
    tmp_path: Path, family: str, changes: dict[str, Any], tolerance: float
) -> None:
    import torch

    theirs = saved_by_transformers(tmp_path / "base", family, changes)
    stored = json.loads((tmp_path / "base" / "config.json").read_text())
    assert "rope_theta" not in stored
    ids = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    ours = load_base(str(tmp_path / "base"), keep_quantized=False).model
    np.testing.assert_allclose(np.array(ours(mx.array(ids))), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("family", "changes", "why"), REFUSED)
def test_what_mlx_lm_would_compute_otherwise_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], why: str
) -> None:
    saved_by_transformers(tmp_path / "base", family, changes)
    with pytest.raises(OrpoError, match=f"mlx-lm's model of type {family} does not support {why}"):
        load_base(str(tmp_path / "base"))
