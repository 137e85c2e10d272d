"""transformers -> MLX -> transformers: the same names, the same values, the same logits."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.interop.checkpoint.folder import PROVEN
from orpo_mlx.interop.convert.to_mlx import convert
from tests import tiny
from tests.interop.convert.test_to_mlx import weights
from tests.parity.test_rope import CASES as ROPE_CASES
from tests.parity.test_rope import DEEPSEEK, EXPERTS, ROPE, saved_by_transformers

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

IDS = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (2, 40))
SHORT_CONVOLUTION = {
    "layer_types": ["conv", "full_attention"] * 2,
    "block_dim": 64,
    "block_ff_dim": 96,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "block_multiple_of": 32,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
    "tie_word_embeddings": True,
}
PARTIAL = {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}
MORE: list[tuple[str, dict[str, Any]]] = [
    ("ministral3", {"rope_parameters": ROPE | {
        "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 512,
    }}),
    ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
    ("phi", PARTIAL),
    ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("olmoe", EXPERTS),
    ("lfm2", SHORT_CONVOLUTION),
    ("mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2,
                "rope_parameters": None}),
    ("stablelm", PARTIAL),
    ("seed_oss", {"head_dim": 16}),
    ("ernie4_5", {}),
    ("hunyuan_v1_dense", {"head_dim": 16}),
    ("helium", {"head_dim": 16}),
    ("nemotron", PARTIAL),
    ("afmoe", {}),
]  # fmt: skip
KNOWN = {family: changes for family, changes, _ in ROPE_CASES} | dict(MORE)


def test_every_family_that_is_called_proven_is_tried_here() -> None:
    refused = {"deepseek_v3", "qwen3_next"}
    assert set(PROVEN) == KNOWN.keys() - refused
    assert DEEPSEEK  # their settings are next to those of the others


@pytest.mark.parametrize("family", PROVEN)
def test_a_model_comes_back_from_mlx_as_it_was(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = saved_by_transformers(tmp_path / "base", family, KNOWN[family])
    convert(ConvertConfig(source=tmp_path / "base", output=tmp_path / "mlx"), lambda _: None)
    convert(
        ConvertConfig(source=tmp_path / "mlx", output=tmp_path / "back", dequantize=True),
        lambda _: None,
    )
    before, after = weights(tmp_path / "base"), weights(tmp_path / "back")
    assert after.keys() == before.keys()
    assert all(mx.array_equal(before[name], value) for name, value in after.items())
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    with torch.no_grad():
        expected, actual = (m.eval()(torch.tensor(IDS)).logits for m in (theirs, loaded))
    # not 1e-6 off: rope, scales and windows of the config are the same
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


# float32 of some hundred additions; starcoder2: mlx-lm's own GELU
@pytest.mark.parametrize(
    ("family", "tolerance"),
    [("llama", 3e-5), ("qwen3_moe", 3e-5), ("mixtral", 3e-5), ("gemma2", 3e-5), ("phi3", 5e-5),
     ("olmo2", 3e-5), ("glm4", 3e-5), ("starcoder2", 5e-3)],
)  # fmt: skip
def test_a_quantized_model_computes_the_same_in_transformers(
    tmp_path: Path, family: str, tolerance: float
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    saved_by_transformers(tmp_path / "base", family, KNOWN[family])
    convert(
        ConvertConfig(source=tmp_path / "base", output=tmp_path / "mlx", bits=4, group_size=32),
        lambda _: None,
    )
    convert(
        ConvertConfig(
            source=tmp_path / "mlx", output=tmp_path / "back", dequantize=True, dtype="float32"
        ),
        lambda _: None,
    )
    ours, _ = mlx_lm.load(str(tmp_path / "mlx"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(np.array(ours(mx.array(IDS))), expected, atol=tolerance, rtol=0)
