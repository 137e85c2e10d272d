"""Which modules are trained, and how: targets by name, routers, DoRA's limits, keyed dropout."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.model import lora
from orpo_mlx.model.base import load_base
from tests import tiny

pytestmark = pytest.mark.touchy

ROUTERS = {
    "llama": [],
    "qwen3_moe": ["mlp.gate"],
    "mixtral": ["block_sparse_moe.gate"],
    "gpt_oss": ["mlp.router"],
    "gemma4_text": ["router.proj"],
    "granitemoe": ["block_sparse_moe.router.layer"],
    "qwen3_next": ["mlp.gate", "mlp.shared_expert_gate"],
    "dbrx": ["ffn.router.layer"],
    "deepseek_v3": [],  # its gate is not a linear layer
}


def attached(model: nn.Module, names: list[str], num_layers: int = -1, **how: object) -> nn.Module:
    settings = {"kind": "lora", "rank": 4, "scale": 2.0, "dropout": 0.0, "bits": {}} | how
    lora.attach(model, lora.find_targets(model, names, num_layers), **settings)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, _ in tree_flatten(model.trainable_parameters())}


@pytest.mark.parametrize("family", ROUTERS)
def test_all_linear_is_every_linear_layer_of_the_blocks_but_routers(family: str) -> None:
    model, _ = tiny.build_model(family)
    keys = lora.find_targets(model, ["all-linear"], -1).keys
    linear = {
        path
        for block in model.layers
        for path, m in block.named_modules()
        if isinstance(m, lora.LINEAR)
    }
    assert set(keys) == linear - set(ROUTERS[family])
    assert set(ROUTERS[family]) <= linear


@pytest.mark.parametrize("family", [f for f, r in ROUTERS.items() if r])
def test_a_router_is_adapted_by_name_and_reported(family: str) -> None:
    model, _ = tiny.build_model(family)
    name = ROUTERS[family][0]
    targets = lora.find_targets(model, ["all-linear", name], -1)
    assert targets.routers == [name]
    assert name in targets.keys


def test_only_the_last_blocks_are_adapted() -> None:
    model, _ = tiny.build_model("llama")
    assert trained(attached(model, ["q_proj"], 2)) == {
        f"model.layers.{layer}.self_attn.q_proj.lora_{part}" for layer in (1, 2) for part in "ab"
    }
    with pytest.raises(OrpoError, match="--num-layers 4: the model has 3 blocks"):
        lora.find_targets(model, ["all-linear"], 4)


def test_a_name_matches_whole_parts_of_a_path() -> None:
    model, _ = tiny.build_model("llama")
    assert lora.find_targets(model, ["mlp.up_proj"], -1).keys == ["mlp.up_proj"]
    with pytest.raises(OrpoError) as caught:
        lora.find_targets(model, ["proj", "q_proj", "c_attn"], -1)
    assert str(caught.value) == (
        "--target-modules proj,c_attn: no such module in the model. Allowed: all-linear, or any "
        "of down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )


def test_head_and_embeddings_are_adapted_by_name() -> None:
    untied, _ = tiny.build_model("llama", tie_word_embeddings=False)
    assert trained(attached(untied, ["lm_head"])) == {"lm_head.lora_a", "lm_head.lora_b"}
    tied, _ = tiny.build_model("llama")
    with pytest.raises(OrpoError, match="shares the embedding's weights is trained by embed_tok"):
        lora.find_targets(tied, ["lm_head"], -1)
    assert trained(attached(tied, ["embed_tokens"], 0)) == {
        "model.embed_tokens.lora_a",
        "model.embed_tokens.lora_b",
    }
    ids = mx.array([[3, 4, 5]])
    before = tied(ids)
    tied.model.embed_tokens.lora_b += 0.1
    assert mx.abs(tied(ids) - before).max().item() > 0.01


def test_no_block_and_no_other_module_is_an_error() -> None:
    model, _ = tiny.build_model("llama")
    with pytest.raises(OrpoError, match="--num-layers 0 leaves out all blocks"):
        lora.find_targets(model, ["all-linear"], 0)
    with pytest.raises(OrpoError, match="nothing would be trained"):
        lora.unfreeze_blocks(model, 0)


@pytest.mark.parametrize("keep_quantized", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_dora_is_refused_where_mlx_lm_cannot_read_the_stored_bits(
    tmp_path: Path, bits: int, keep_quantized: bool
) -> None:
    folder = tiny.save_base(tmp_path / "base", bits=bits)
    base = load_base(str(folder), keep_quantized=keep_quantized)
    if bits == 4:
        names = trained(attached(base.model, ["q_proj"], 1, kind="dora", bits=base.bits))
        assert {n.rsplit(".", 1)[1] for n in names} == {"lora_a", "lora_b", "m"}
        return
    with pytest.raises(OrpoError) as caught:
        attached(base.model, ["q_proj"], 1, kind="dora", bits=base.bits)
    assert str(caught.value) == (
        "--fine-tune-type dora:\n"
        "  model.layers.2.self_attn.q_proj: mlx-lm's DoRA cannot read 3-bit weights\n"
        "Use --fine-tune-type lora, or other --target-modules."
    )


def test_dora_is_refused_on_embeddings_and_experts() -> None:
    model, _ = tiny.build_model("qwen3_moe")
    with pytest.raises(OrpoError, match=r"model\.embed_tokens: DoRA on an embedding"):
        attached(model, ["q_proj", "embed_tokens"], kind="dora")
    with pytest.raises(OrpoError, match=r"layers\.0\.mlp\.switch_mlp\.up_proj: mlx-lm has no DoRA"):
        attached(model, ["all-linear"], kind="dora")


def test_an_adapter_begins_as_the_base() -> None:
    for kind in ("lora", "dora"):
        model, _ = tiny.build_model("llama")
        ids = mx.array([[3, 4, 5]])
        before = model(ids)
        after = attached(model, ["all-linear"], kind=kind)(ids)
        # DoRA divides by a norm and multiplies by it: float32 rounding.
        assert mx.allclose(after, before, atol=0 if kind == "lora" else 1e-5)


def test_full_trains_all_weights_of_the_chosen_blocks() -> None:
    model, _ = tiny.build_model("llama")
    config = lora.unfreeze_blocks(model, 1)
    assert config == {"fine_tune_type": "full", "num_layers": 1}
    block = {f"model.layers.2.{n}" for n, _ in tree_flatten(model.layers[2].parameters())}
    assert trained(model) == block


def test_parameters_are_counted_unpacked(llama: Path, quantized_llama: Path) -> None:
    plain, quantized = load_base(str(llama)).model, load_base(str(quantized_llama)).model
    expected = sum(v.size for _, v in tree_flatten(plain.parameters()))
    assert lora.count_parameters(quantized)[1] == lora.count_parameters(plain)[1] == expected
    attached(quantized, ["q_proj"])
    assert lora.count_parameters(quantized) == (3 * 4 * 128, expected + 3 * 4 * 128)


def outputs(model: nn.Module, key: int, ids: mx.array) -> np.ndarray:
    lora.reset_dropout(model, mx.random.key(key))
    return np.array(model(ids))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_dropout_follows_its_key_and_nothing_else(family: str) -> None:
    model, _ = tiny.build_model(family)
    attached(model, ["all-linear", "embed_tokens"], dropout=0.5)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape) * 0.1
    ids = mx.array([[3, 4, 5, 6]])
    model.train()
    first = outputs(model, 1, ids)
    mx.random.seed(99)
    assert np.array_equal(outputs(model, 1, ids), first)
    assert not np.allclose(outputs(model, 2, ids), first, atol=1e-3)
    model.eval()
    assert np.array_equal(outputs(model, 1, ids), outputs(model, 2, ids))


def test_every_layer_gets_a_mask_of_its_own() -> None:
    keys = [mx.random.key(7)]
    one, two = lora.KeyedDropout(0.25, keys), lora.KeyedDropout(0.25, keys)
    x = mx.ones((100, 100))
    a, b = np.array(one(x)), np.array(two(x))
    assert not np.array_equal(a, b)
    assert set(np.unique(a)) == {0.0, np.float32(1 / 0.75)}
    assert abs((a == 0).mean() - 0.25) < 0.02  # 10,000 draws: 4.6 standard deviations
