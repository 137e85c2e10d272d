"""Origins say what `sanitize` does: applied by hand to random tensors they give its result."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.checkpoint.origins import (
    Origin,
    build_skeleton,
    trace_origins,
    trace_parameters,
)
from orpo_mlx.model.safetensors import StoredTensor
from tests.families import COMMON, FAMILIES

# What sanitize computes: norms plus 1, absorbed projections, weights times a constant.
COMPUTED = {
    "qwen3_next": {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"},
    "qwen3_5": {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"},
    "deepseek_v3": {"embed_q", "unembed_out"},
    "falcon_h1": {
        "embed_tokens",
        "gate_proj",
        "down_proj",
        "in_proj",
        "out_proj",
        "o_proj",
    },
}


def config_of(family: str) -> dict[str, Any]:
    return {"model_type": family, **COMMON, **FAMILIES[family]}


def checkpoint_of(
    origins: dict[str, Origin], shapes: dict[str, tuple[int, ...]]
) -> dict[str, mx.array]:
    """Random tensors that the origins speak of, in the shapes that they imply."""
    random = np.random.default_rng(0)
    wanted: dict[str, tuple[int, ...]] = {}
    for path, origin in origins.items():
        shape = shapes[path][1:] if len(origin.names) > 1 else shapes[path]
        if origin.transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if origin.rows is not None:
            axis = len(shape) - 1 if path.endswith("bias") else len(shape) - 2
            rows = max(origin.rows.stop, 2 * shape[axis])
            shape = (*shape[:axis], rows, *shape[axis + 1 :])
        for name in origin.names:
            wanted[name] = shape
    return {n: mx.array(random.normal(size=s).astype(np.float32)) for n, s in wanted.items()}


def applied(path: str, origin: Origin, tensors: dict[str, mx.array]) -> mx.array:
    """Our parameter, made of the checkpoint's tensors as the origin says."""
    parts = [tensors[name] for name in origin.names]
    if origin.rows is not None:
        bias = path.endswith("bias")
        parts = [p[..., origin.rows] if bias else p[..., origin.rows, :] for p in parts]
    if origin.transposed:
        parts = [p.swapaxes(-1, -2) for p in parts]
    return mx.stack(parts) if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt_oss"])
def test_an_origin_applied_by_hand_is_what_sanitize_makes(family: str) -> None:
    config = config_of(family)
    origins, computed = trace_parameters(config)
    assert {path.split(".")[-2] for path in computed} == COMPUTED.get(family, set())
    model = build_skeleton(config)
    shapes = {n: v.shape for n, v in tree_flatten(model.parameters())}
    tensors = checkpoint_of(origins, shapes)
    made = dict(tensors)
    if hasattr(model, "sanitize"):
        made = model.sanitize(dict(tensors))
    for path, origin in origins.items():
        assert mx.array_equal(made[path], applied(path, origin, tensors)), path
        assert made[path].shape == shapes[path], path


def test_mxfp4_experts_are_every_second_row() -> None:
    origins = trace_origins(config_of("gpt_oss"))
    block = "model.layers.0.mlp.experts"
    assert origins[f"{block}.gate_proj.weight"] == Origin(
        (f"{block}.gate_up_proj_blocks",), slice(0, 191, 2), False
    )
    assert origins[f"{block}.up_proj.bias"] == Origin(
        (f"{block}.gate_up_proj_bias",), slice(1, 192, 2), False
    )


def test_names_of_a_checkpoint_that_is_there_are_taken_from_it() -> None:
    parameters = tree_flatten(build_skeleton(config_of("qwen3_5")).parameters())
    stored = {
        name.replace("language_model.model", "model.language_model"): StoredTensor(
            "F32", value.shape, 0, value.nbytes
        )
        for name, value in parameters
    }
    stored["model.visual.patch_embed.proj.weight"] = StoredTensor("F32", (8, 3), 0, 96)
    origins, _ = trace_parameters(config_of("qwen3_5"), stored)
    name = "layers.0.mlp.gate_proj.weight"
    assert origins[f"language_model.model.{name}"].names == (f"model.language_model.{name}",)


def test_an_mlx_folder_says_nothing_of_the_checkpoint_and_it_is_found() -> None:
    config = config_of("qwen3_moe")
    stored = {
        name: StoredTensor("F32", value.shape, 0, value.nbytes)
        for name, value in tree_flatten(build_skeleton(config).parameters())
    }
    assert trace_parameters(config, stored) == trace_parameters(config, None)


def test_what_is_computed_is_named() -> None:
    with pytest.raises(OrpoError, match=r"deepseek_v3(.|\n)*layers\.0\.self_attn\.embed_q\.weight"):
        trace_origins(config_of("deepseek_v3"))


def test_a_model_that_mlx_lm_does_not_know_is_one_message() -> None:
    with pytest.raises(OrpoError, match="cannot build a model of type 'nonesuch'"):
        trace_origins({"model_type": "nonesuch"})
