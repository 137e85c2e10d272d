from typing import Any

import pytest

from orpo_mlx.interop.peft.vllm import vllm_notes

PLAIN: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16.0,
    "target_modules": ["model.layers.0.self_attn.q_proj"],
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
}
FUSE = "fuse the adapter and serve the fused folder."


def test_nothing_is_said_of_a_plain_adapter() -> None:
    assert vllm_notes(PLAIN) == []
    assert vllm_notes(PLAIN | {"use_rslora": True, "r": 16, "rank_pattern": {}}) == []


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"use_dora": True}, f"vLLM refuses DoRA: {FUSE}"),
        ({"modules_to_save": ["lm_head"]}, f"vLLM refuses modules_to_save: {FUSE}"),
        ({"bias": "all"}, "vLLM refuses bias 'all'."),
        ({"r": 17}, "vLLM needs --max-lora-rank 32."),
        ({"r": 300}, "vLLM needs --max-lora-rank 320."),
        ({"r": 600}, "vLLM takes ranks up to 512, this adapter has 600: fuse it."),
        (
            {"target_modules": ["lm_head", "model.embed_tokens", "q_proj"]},
            "vLLM takes lm_head, model.embed_tokens only for architectures whose class names "
            "embedding_modules; elsewhere it refuses the adapter.",
        ),
        (
            {"target_parameters": ["model.layers.0.mlp.experts.down_proj"]},
            "vLLM takes experts in this layout only for some mixtures: try yours.",
        ),
        (
            {"alpha_pattern": {"q_proj": 32.0}},
            "vLLM reads no alpha_pattern and no rank_pattern and would scale wrongly: q_proj. "
            "Fuse the adapter.",
        ),
    ],
)
def test_what_vllm_refuses_is_named(changes: dict[str, Any], note: str) -> None:
    assert vllm_notes(PLAIN | changes) == [note]


def test_patterns_that_keep_the_scale_only_ask_for_their_rank() -> None:
    doubled = {"rank_pattern": {"experts": 24}, "alpha_pattern": {"experts": 48.0}}
    assert vllm_notes(PLAIN | doubled) == ["vLLM needs --max-lora-rank 32."]


def test_a_rank_that_grows_alone_is_another_scale_by_rslora_too() -> None:
    grown = {"use_rslora": True, "rank_pattern": {"a": 32, "b": 8}, "alpha_pattern": {"a": 32.0}}
    assert vllm_notes(PLAIN | grown) == ["vLLM needs --max-lora-rank 32."]
    (_, note) = vllm_notes(PLAIN | grown | {"use_rslora": False})
    assert "would scale wrongly: a." in note
