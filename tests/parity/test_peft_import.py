"""Adapters that PEFT made: after import, mlx-lm gives PEFT's logits."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orpo_mlx.config.interop import ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.peft.importer import Imported, import_peft
from orpo_mlx.model.adapters import apply_adapter, read_adapter
from orpo_mlx.model.base import load_weights
from tests.parity.peft_bases import build_theirs, our_logits, their_logits
from tests.parity.peft_comparison import MOVED, TOLERANCE, TOLERANCES

pytestmark = [
    pytest.mark.touchy,
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    # PEFT's own, of an embedding that it is to adapt
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made_by_peft(model: Any, folder: Path, **config: Any) -> Any:
    """The model with an adapter of PEFT's, its lora_B and magnitudes random, saved."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(0, 0.1)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) * 0.4 + 0.8)
    wrapped.save_pretrained(str(folder))
    return wrapped.eval()


def imported(folder: Path, report: Any = lambda event: None) -> Imported:
    return import_peft(
        ImportConfig(
            adapter=str(folder / "peft"), model=str(folder / "base"), output=folder / "adapter"
        ),
        report,
    )


def import_and_compare(
    folder: Path, family: str, changes: dict[str, Any] | None = None, **config: Any
) -> tuple[Imported, list[str]]:
    """Import what PEFT made, compare the logits; the result and the notices."""
    theirs = build_theirs(family, folder / "base", **(changes or {}))
    before = their_logits(theirs)
    wrapped = made_by_peft(theirs, folder / "peft", **config)
    events: list[Event] = []
    result = imported(folder, events.append)
    model, _, _ = load_weights(folder / "base", family)
    apply_adapter(model, folder / "adapter")
    expected = their_logits(wrapped)
    assert np.abs(expected - before).max() > MOVED
    np.testing.assert_allclose(
        our_logits(model), expected, atol=TOLERANCES.get(family, TOLERANCE), rtol=0
    )
    return result, [e.text for e in events if isinstance(e, Notice)]


def test_one_rank_and_one_scale_need_no_padding(tmp_path: Path) -> None:
    result, notices = import_and_compare(tmp_path, "llama", r=4, lora_alpha=8, target_modules=ALL)
    assert (result.rank, result.scale, result.num_layers, result.padded) == (4, 2.0, 3, 0)
    assert notices == []


def test_rslora_is_the_same_scale(tmp_path: Path) -> None:
    result, _ = import_and_compare(
        tmp_path, "llama", r=8, lora_alpha=4, use_rslora=True, target_modules=ALL
    )
    assert result.scale == 4 / 8**0.5


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_and_alpha_patterns_are_padded_and_reported(rslora: bool, tmp_path: Path) -> None:
    result, notices = import_and_compare(
        tmp_path,
        "llama",
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        target_modules=ALL,
        rank_pattern={"q_proj": 6, r".*\.1\.mlp\.up_proj": 2},
        alpha_pattern={"layers.2.self_attn.v_proj": 3},
    )
    assert (result.rank, result.scale, result.padded) == (6, 1.0, 18)
    assert notices[0].startswith("mlx-lm knows one rank: modules of rank 2, 4 are padded to 6")
    assert "multiplied into lora_b" in notices[1]


@pytest.mark.parametrize("dora", [False, True])
def test_layers_left_alone_stay_as_they_are(dora: bool, tmp_path: Path) -> None:
    result, notices = import_and_compare(
        tmp_path,
        "llama",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[1],
        use_dora=dora,
    )
    assert (result.num_layers, result.modules, result.padded) == (2, 4, 2)
    assert "2 modules that this adapter leaves alone get zeros" in notices[-1]


def test_other_modules_in_each_block(tmp_path: Path) -> None:
    targets = r"model\.layers\.(0\.self_attn\.q_proj|2\.mlp\.up_proj)"
    result, _ = import_and_compare(tmp_path, "llama", r=4, lora_alpha=8, target_modules=targets)
    assert (result.num_layers, result.modules, result.padded) == (3, 6, 4)


@pytest.mark.parametrize("family", ["mistral3", "qwen3_5", "phi3"])
def test_other_names_are_found(family: str, tmp_path: Path) -> None:
    text_alone = r".*\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)"
    import_and_compare(tmp_path, family, r=4, lora_alpha=8, target_modules=text_alone)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize(
    "parameters",
    [["gate_up_proj"], ["down_proj"], ["gate_up_proj", "down_proj"]],
    ids=["gate_up", "down", "both"],
)
def test_experts_that_peft_trained(family: str, parameters: list[str], tmp_path: Path) -> None:
    result, _ = import_and_compare(
        tmp_path,
        family,
        r=4,
        lora_alpha=8,
        target_modules=["o_proj"],
        target_parameters=[f"mlp.experts.{name}" for name in parameters],
    )
    assert result.rank == 4


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_names_that_peft_takes_for_the_experts(family: str, tmp_path: Path) -> None:
    targets = ALL if family == "qwen3_moe" else ["q_proj", "w1", "w2", "w3"]
    result, _ = import_and_compare(tmp_path, family, r=4, lora_alpha=8, target_modules=targets)
    assert result.rank == 8  # gate and up share lora_A: full blocks, not two halves


def test_a_router(tmp_path: Path) -> None:
    import_and_compare(
        tmp_path,
        "qwen3_moe",
        r=4,
        lora_alpha=8,
        target_modules=[],
        target_parameters=["mlp.gate.weight"],
    )


def test_a_head_of_its_own(tmp_path: Path) -> None:
    import_and_compare(tmp_path, "llama", r=4, lora_alpha=8, target_modules=["lm_head", "q_proj"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_of_the_bases_embedding_is_left_out_a_trained_one_refused(
    trained: bool, tmp_path: Path
) -> None:
    import torch

    theirs = build_theirs("llama", tmp_path / "base")
    wrapped = made_by_peft(theirs, tmp_path / "peft", r=4, target_modules=["embed_tokens"])
    if trained:
        with torch.no_grad():
            wrapped.get_input_embeddings().base_layer.weight.add_(0.01)
    wrapped.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=True)
    if trained:
        with pytest.raises(OrpoError, match="embed_tokens: a full weight that is not the base's"):
            imported(tmp_path)
        return
    events: list[Event] = []
    imported(tmp_path, events.append)
    notices = [e.text for e in events if isinstance(e, Notice)]
    assert any("embed_tokens: left out, a copy of the base's own weight." in t for t in notices)


def test_a_tied_embedding_adapted_on_both_sides(tmp_path: Path) -> None:
    import_and_compare(
        tmp_path,
        "llama",
        {"tie_word_embeddings": True},
        r=4,
        lora_alpha=8,
        target_modules=["embed_tokens"],
        ensure_weight_tying=True,
    )


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_one_side_of_a_tied_embedding_is_refused_by_name(target: str, tmp_path: Path) -> None:
    theirs = build_theirs("llama", tmp_path / "base", tie_word_embeddings=True)
    made_by_peft(theirs, tmp_path / "peft", r=4, lora_alpha=8, target_modules=[target])
    with pytest.raises(OrpoError, match=f"{target}: only the (embedding|head) is adapted"):
        imported(tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_whole_weights_are_refused_by_name(tmp_path: Path) -> None:
    theirs = build_theirs("llama", tmp_path / "base")
    made_by_peft(
        theirs, tmp_path / "peft", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    with pytest.raises(OrpoError, match="modules_to_save: full weights of lm_head"):
        imported(tmp_path)


def test_a_resized_embedding_is_refused_by_name(tmp_path: Path) -> None:
    theirs = build_theirs("llama", tmp_path / "base")
    theirs.resize_token_embeddings(theirs.config.vocab_size + 8, mean_resizing=False)
    made_by_peft(theirs, tmp_path / "peft", r=4, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(OrpoError, match="embed_tokens"):
        imported(tmp_path)


def test_imported_weights_keep_their_type(tmp_path: Path) -> None:
    import torch

    theirs = build_theirs("llama", tmp_path / "base").to(torch.bfloat16)
    wrapped = made_by_peft(theirs, tmp_path / "peft", r=4, target_modules=["q_proj"])
    wrapped.to(torch.bfloat16).save_pretrained(str(tmp_path / "peft"))
    imported(tmp_path)
    types = {v.dtype for v in read_adapter(tmp_path / "adapter").weights.values()}
    assert types == {mx.bfloat16}


def test_the_config_that_is_written_is_mlx_lms(tmp_path: Path) -> None:
    import_and_compare(tmp_path, "llama", r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written == {
        "fine_tune_type": "lora",
        "num_layers": 3,
        "lora_parameters": {
            "rank": 4,
            "scale": 2.0,
            "dropout": 0.0,
            "keys": ["lm_head", "self_attn.q_proj"],
        },
        "model": str(tmp_path / "base"),
        "revision": None,
    }
