"""Adapters of every family: PEFT's logits are ours, and what comes back is what went out."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.config.interop import ExportConfig, ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.peft.exporter import PROVEN, export_peft
from orpo_mlx.interop.peft.importer import import_peft
from orpo_mlx.model.adapters import read_adapter
from tests.parity.peft_bases import FAMILIES, MIXTURES, build_theirs, random_adapter
from tests.parity.peft_comparison import compared

pytestmark = [
    pytest.mark.touchy,
    pytest.mark.parity,
    # transformers' own, on PEFT's first look at a model
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # PEFT compares patterns with target_modules alone, and then uses them for parameters too
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]
DENSE = [family for family in FAMILIES if family not in MIXTURES]
ATTENTION = ["self_attn.q_proj", "self_attn.o_proj"]


def came_back(folder: Path) -> None:
    """What `import` makes of folder/peft is folder/adapter, bit for bit."""
    import_peft(
        ImportConfig(
            adapter=str(folder / "peft"),
            model=str(folder / "base"),
            output=folder / "back",
        )
    )
    went, came = read_adapter(folder / "adapter"), read_adapter(folder / "back")
    assert came.weights.keys() == went.weights.keys()
    for name, value in went.weights.items():
        assert came.weights[name].dtype == value.dtype
        assert mx.array_equal(came.weights[name], value), name
    assert came[3:] == went[3:]  # kind, rank, scale, keys, num_layers


def test_the_families_that_are_called_proven_are_those_compared_here() -> None:
    assert set(PROVEN) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_every_module_gives_pefts_logits_and_comes_back(
    family: str, tmp_path: Path
) -> None:
    result = compared(family, tmp_path)
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize("family", DENSE)
def test_dora_gives_pefts_logits_and_comes_back(family: str, tmp_path: Path) -> None:
    result = compared(family, tmp_path, targets=["all-linear"], kind="dora")
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_dora_next_to_experts_gives_pefts_logits(family: str, tmp_path: Path) -> None:
    result = compared(family, tmp_path, targets=ATTENTION, kind="dora")
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite", "qwen3_5", "mistral3", "mixtral"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_tied_and_not(family: str, tied: bool, tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": tied}
    result = compared(family, tmp_path, targets=["embed_tokens"], changes=changes)
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_the_last_layers_alone(family: str, num_layers: int, tmp_path: Path) -> None:
    result = compared(family, tmp_path, targets=["all-linear"], num_layers=num_layers)
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_one_projection_of_the_experts_alone(family: str, part: str, tmp_path: Path) -> None:
    result = compared(family, tmp_path, targets=[part])
    assert result.right, result
    came_back(tmp_path)


@pytest.mark.parametrize(("rank", "alpha"), [(3, 0.3), (6, 2.0), (8, 16.0), (48, 7.7)])
def test_the_scale_of_an_alpha_comes_back_exactly(rank: int, alpha: float, tmp_path: Path) -> None:
    scale = alpha / rank
    result = compared("llama", tmp_path, rank=rank, scale=scale, targets=["all-linear"])
    assert result.apart < result.tolerance
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written["lora_alpha"] / written["r"] == scale
    came_back(tmp_path)


def test_an_rslora_scale_gives_pefts_logits(tmp_path: Path) -> None:
    result = compared("llama", tmp_path, rank=6, scale=12 / 6**0.5, targets=["all-linear"])
    assert result.right, result
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written["lora_alpha"] / written["r"] == pytest.approx(12 / 6**0.5, rel=1e-15)


def test_dora_on_experts_is_refused_by_name(tmp_path: Path) -> None:
    build_theirs("qwen3_moe", tmp_path / "base")
    random_adapter(tmp_path / "base", tmp_path / "adapter", ["gate"], kind="dora")
    with pytest.raises(OrpoError, match=r"model\.layers\.0\.mlp\.gate: PEFT has no DoRA for"):
        export_peft(ExportConfig(adapter=tmp_path / "adapter", to="peft", output=tmp_path / "peft"))
    assert not (tmp_path / "peft").exists()
