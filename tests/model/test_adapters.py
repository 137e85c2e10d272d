"""The adapter folder: mlx-lm reads what we write, and what does not fit is refused."""

import json
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.model import lora
from orpo_mlx.model.adapter_checks import ADAPTER_LEAVES
from orpo_mlx.model.adapters import AdapterSwitch, apply_adapter, read_adapter, save_adapter
from orpo_mlx.model.base import Base, load_base
from tests import tiny

IDS = mx.array([[5, 9, 40, 7, 300, 12]])


def adapted(
    folder: Path, output: Path, names: list[str], kind: str = "lora", keep_quantized: bool = False
) -> Base:
    """A base with a random adapter that moves its logits, saved to `output`."""
    base = load_base(str(folder), keep_quantized=keep_quantized)
    targets = lora.find_targets(base.model, names, 2)
    if kind == "full":
        config = lora.unfreeze_blocks(base.model, 2)
    else:
        config = lora.attach(
            base.model, targets, kind=kind, rank=4, scale=3.0, dropout=0.1, bits=base.bits
        )
    mx.random.seed(1)

    def moved(name: str, value: mx.array) -> mx.array:
        if kind == "full" or name.endswith((".lora_b", ".m")):
            return value + 0.05 * mx.random.normal(value.shape)
        return value

    base.model.update(tree_map_with_path(moved, base.model.trainable_parameters()))
    weights = dict(tree_flatten(base.model.trainable_parameters()))
    output.mkdir()
    save_adapter(output, weights, config | {"model": str(folder), "revision": None})
    base.model.eval()
    return base


def fused(model: nn.Module) -> nn.Module:
    """mlx-lm's own fuse of every module that has one."""
    model.update_modules(
        tree_unflatten([(p, m.fuse()) for p, m in model.named_modules() if "lora_a" in m])
    )
    return model


def farthest(a: mx.array, b: mx.array) -> float:
    return mx.abs(a - b).max().item()


CASES = [
    ("llama", ["all-linear"], "lora"),
    ("llama", ["all-linear", "embed_tokens"], "lora"),
    ("llama", ["all-linear"], "dora"),
    ("llama", ["all-linear"], "full"),
    ("qwen3_moe", ["all-linear", "mlp.gate"], "lora"),
    ("deepseek_v3", ["all-linear"], "lora"),
    ("qwen3_next", ["all-linear"], "lora"),
]


@pytest.mark.parametrize(("family", "names", "kind"), CASES)
def test_a_switched_adapter_gives_the_logits_of_the_base_and_its_own_bit_for_bit(
    tmp_path: Path, family: str, names: list[str], kind: str
) -> None:
    folder = tiny.save_base(tmp_path / "base", family)
    adapted(folder, tmp_path / "adapter", names, kind)
    plain, worn, switched = (load_base(str(folder)).model for _ in range(3))
    apply_adapter(worn, tmp_path / "adapter")
    base, own = plain(IDS), worn(IDS)
    assert farthest(base, own) > 0.01
    switch = AdapterSwitch(switched, read_adapter(tmp_path / "adapter"))
    assert mx.array_equal(switched(IDS), own)
    for on in (False, False, True, False, True):
        switch.set(on)
        assert mx.array_equal(switched(IDS), own if on else base)


@pytest.mark.parametrize(("family", "names", "kind"), CASES)
def test_mlx_lm_loads_the_adapter_to_the_same_logits(
    tmp_path: Path, family: str, names: list[str], kind: str
) -> None:
    folder = tiny.save_base(tmp_path / "base", family)
    ours = adapted(folder, tmp_path / "adapter", names, kind).model(IDS)
    theirs, _ = mlx_lm.load(str(folder), adapter_path=str(tmp_path / "adapter"))
    assert farthest(ours, theirs(IDS)) < 1e-5  # the same arithmetic in float32
    assert farthest(ours, load_base(str(folder)).model(IDS)) > 0.05
    again = load_base(str(folder)).model
    apply_adapter(again, tmp_path / "adapter")
    assert mx.array_equal(again(IDS), theirs(IDS))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_on_a_quantized_folder_mlx_lm_equals_our_forward_without_dequantization(
    quantized_llama: Path, tmp_path: Path, kind: str
) -> None:
    """Trained in float32, applied to the stored 4-bit weights by both."""
    adapted(quantized_llama, tmp_path / "adapter", ["all-linear"], kind)
    theirs, _ = mlx_lm.load(str(quantized_llama), adapter_path=str(tmp_path / "adapter"))
    kept = load_base(str(quantized_llama), keep_quantized=True).model
    apply_adapter(kept, tmp_path / "adapter")
    assert farthest(kept(IDS), theirs(IDS)) < 1e-5


@pytest.mark.parametrize(("family", "names", "kind"), [c for c in CASES if c[2] != "full"])
def test_an_adapter_equals_its_fused_weights(
    tmp_path: Path, family: str, names: list[str], kind: str
) -> None:
    model = adapted(tiny.save_base(tmp_path / "base", family), tmp_path / "a", names, kind).model
    before = model(IDS)
    assert farthest(before, fused(model)(IDS)) < 2e-5  # products in another order, float32


def test_the_files_can_be_read_by_everyone(llama: Path, tmp_path: Path) -> None:
    adapted(llama, tmp_path / "adapter", ["q_proj"])
    files = list((tmp_path / "adapter").iterdir())
    assert sorted(f.name for f in files) == ["adapter_config.json", "adapters.safetensors"]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o644}
    names = mx.load(str(tmp_path / "adapter" / "adapters.safetensors"))
    assert {n.rsplit(".", 1)[1] for n in names} == {"lora_a", "lora_b"} < set(ADAPTER_LEAVES)


def refusal(folder: Path, adapter: Path) -> str:
    with pytest.raises(OrpoError) as caught:
        apply_adapter(load_base(str(folder)).model, adapter)
    return str(caught.value).replace(str(adapter), "ADAPTER").replace(str(folder), "BASE")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 96, "num_attention_heads": 6},
            "lora_a: adapter shape (96, 4) does not match model parameter shape (64, 4)",
        ),
        ({"num_hidden_layers": 6}, "layers.4.self_attn.q_proj.lora_a: not an adapter parameter"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = tiny.save_base(tmp_path / "other", **changes)
    adapted(other, tmp_path / "adapter", ["q_proj"])
    text = refusal(llama, tmp_path / "adapter")
    assert text.startswith(f"Adapter ADAPTER (made for {other}) does not fit this model:\n")
    assert message in text


def test_an_adapter_of_a_deeper_model_is_refused(llama: Path, tmp_path: Path) -> None:
    adapted(llama, tmp_path / "adapter", ["q_proj"])
    shallow = tiny.save_base(tmp_path / "shallow", num_hidden_layers=1)
    assert "it adapts 2 blocks, the model has 1." in refusal(shallow, tmp_path / "adapter")


def test_an_adapter_that_lacks_tensors_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapted(llama, adapter, ["q_proj"])
    weights: Any = mx.load(str(adapter / "adapters.safetensors"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    first, second, *_ = sorted(weights)
    rest = {n: w for n, w in weights.items() if n not in (first, second)}
    save_adapter(adapter, rest, config)
    assert f"adapters.safetensors lacks 2 tensors ({first})" in refusal(llama, adapter)
    save_adapter(adapter, rest | {second: weights[second]}, config)
    assert "q_proj: has lora_b (a lora has lora_a, lora_b)" in refusal(llama, adapter)


def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    base = adapted(llama, adapter, ["q_proj"])
    before = (adapter / "adapters.safetensors").read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[write] Unable to write 8 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OrpoError, match=r"adapters\.safetensors cannot be written: .* Unable to"):
        save_adapter(adapter, dict(tree_flatten(base.model.trainable_parameters())), {})
    assert (adapter / "adapters.safetensors").read_bytes() == before
    assert len(list(adapter.iterdir())) == 2
