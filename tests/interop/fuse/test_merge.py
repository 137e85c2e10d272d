"""A fused folder equals the adapter on its base, as mlx-lm loads both."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.events import Notice
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.families import FAMILIES
from tests.interop.adapted import adapted, farthest, fused, fused_logits, logits

pytestmark = pytest.mark.touchy

SAME = 2e-5  # float32, products in another order; of logits of size 1
MOVED = 0.01  # what the adapters of these tests do at least
# Modules whose weights a family's own code reads, so that they take no adapter.
TARGETS = {"gemma3n": ["self_attn.q_proj", "mlp.up_proj"]}
# transformers, which loads the tokenizer, takes whole numbers only.
WHOLE: dict[str, dict[str, Any]] = {
    name: {"query_pre_attn_scalar": 16} for name in ("gemma2", "gemma3_text")
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_folder_of_every_family_equals_the_adapter(tmp_path: Path, family: str) -> None:
    base = tiny.save_base(tmp_path / "base", family, **WHOLE.get(family, {}))
    adapted(base, tmp_path / "run", TARGETS.get(family, ["all-linear"]))
    done = fused(tmp_path / "run", tmp_path / "out", verify=True)
    assert done.checked > 10
    assert done.drift is not None
    assert abs(done.drift.kl_fused) < 0.01 * done.drift.kl_base
    expected = logits(base, tmp_path / "run")
    size = max(1.0, mx.abs(expected).max().item())
    assert farthest(fused_logits(tmp_path / "out"), expected) < SAME * size
    assert farthest(expected, logits(base)) > MOVED


KINDS = [
    ("llama", ["all-linear"], "dora", {}),
    ("llama", ["all-linear"], "full", {}),
    ("llama", ["q_proj", "embed_tokens"], "lora", {}),  # tied: input and head
    ("llama", ["lm_head", "embed_tokens"], "lora", {"tie_word_embeddings": False}),
    ("qwen3_moe", ["all-linear", "mlp.gate"], "lora", {}),  # experts and router
    ("deepseek_v3", ["all-linear", "embed_tokens"], "lora", {}),
    ("qwen3_next", ["all-linear"], "full", {}),
]


@pytest.mark.parametrize(
    ("family", "names", "kind", "changes", "bits"),
    [(*case, bits) for case in KINDS for bits in (None, 4) if not (bits and case[2] == "full")],
)
def test_every_kind_of_adapter_is_fused(
    tmp_path: Path, family: str, names: list[str], kind: str, changes: dict, bits: int | None
) -> None:
    base = tiny.save_base(tmp_path / "base", family, bits=bits, **changes)
    adapted(base, tmp_path / "run", names, kind)
    fused(tmp_path / "run", tmp_path / "out", dequantize=bool(bits), dtype="float32", verify=True)
    expected = logits(base, tmp_path / "run")
    assert farthest(fused_logits(tmp_path / "out"), expected) < SAME
    assert farthest(expected, logits(base)) > MOVED


def test_it_does_what_mlx_lms_own_fuse_does(quantized_llama: Path, tmp_path: Path) -> None:
    """Quantized again, tensor for tensor, but for the steps: ours keeps those that fit, mlx-lm's
    computes all of them again."""
    model = adapted(quantized_llama, tmp_path / "run", ["all-linear"], keep_quantized=True).model
    theirs = tree_unflatten([(p, m.fuse()) for p, m in model.named_modules() if "lora_a" in m])
    model.update_modules(theirs)
    fused(tmp_path / "run", tmp_path / "out")
    ours = load_base(str(tmp_path / "out"), keep_quantized=True).model
    expected = dict(tree_flatten(model.parameters()))
    for name, value in tree_flatten(ours.parameters()):
        assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name
    plain = [dict(_plain(m)) for m in (ours, model)]
    gaps = [mx.abs(plain[0][n] - plain[1][n]).max().item() for n in plain[0]]
    step = max(m.scales.max().item() for _, m in model.named_modules() if "scales" in m)
    assert max(gaps) < 1.5 * step


def _plain(model: nn.Module) -> list[tuple[str, mx.array]]:
    return [
        (path, mx.dequantize(m.weight, m.scales, m.biases, m.group_size, m.bits))
        for path, m in model.named_modules()
        if "scales" in m
    ]


@pytest.mark.parametrize(
    ("mode", "bits"), [("affine", 3), ("affine", 6), ("mxfp4", 4), ("mxfp8", 8), ("affine", 2)]
)
def test_every_mode_is_made_plain_exactly_and_quantized_again(
    tmp_path: Path, mode: str, bits: int
) -> None:
    base = tiny.save_base(tmp_path / "base", bits=bits, mode=mode)
    adapted(base, tmp_path / "run", ["all-linear"])
    expected = logits(base, tmp_path / "run")
    fused(tmp_path / "run", tmp_path / "plain", dequantize=True, dtype="float32")
    assert farthest(fused_logits(tmp_path / "plain"), expected) < SAME
    done = fused(tmp_path / "run", tmp_path / "out", verify=True)
    stored = json.loads((base / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == stored
    assert done.survived is not None
    assert done.survived > 0.6
    assert done.size_bytes == sum(v.nbytes for v in _tensors(base).values())


def _tensors(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for file in folder.glob("model*.safetensors"):
        loaded: Any = mx.load(str(file))
        tensors |= loaded
    return tensors


def test_more_bits_keep_more_and_a_swallowed_change_is_reported(tmp_path: Path) -> None:
    """A change far below a 4-bit step is lost; 8 bits keep some, --dequantize all of it."""
    reported: list[Any] = []
    results = {}
    for bits in (4, 8):
        base = tiny.save_base(tmp_path / f"base{bits}", bits=bits)
        adapted(base, tmp_path / f"run{bits}", ["all-linear"])
        _scaled(tmp_path / f"run{bits}", 0.03)
        events = reported if bits == 4 else []
        results[bits] = fused(
            tmp_path / f"run{bits}", tmp_path / f"out{bits}", verify=True, report=events.append
        )
    plain = fused(
        tmp_path / "run4", tmp_path / "plain", verify=True, dequantize=True, dtype="float32"
    )
    lost = {name: done.drift.lost for name, done in {**results, 0: plain}.items() if done.drift}
    assert lost[4] > 0.25 > lost[0]
    assert lost[4] > 3 * lost[8]
    assert lost[0] < 1e-3
    warnings = [e.text for e in reported if isinstance(e, Notice) and e.warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("Quantizing again loses what was learned: the fused model is 0.")
    assert warnings[0].endswith("--dequantize keeps it.")


def _scaled(run: Path, factor: float) -> None:
    weights: Any = mx.load(str(run / "adapters.safetensors"))
    config = json.loads((run / "adapter_config.json").read_text())
    smaller = {n: v * factor if n.endswith("lora_b") else v + 0 for n, v in weights.items()}
    mx.eval(smaller)
    save_adapter(run, smaller, config)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_stays_and_is_rounded_once(tmp_path: Path, dtype: mx.Dtype) -> None:
    base = tiny.save_base(tmp_path / "base", dtype=dtype)
    adapted(base, tmp_path / "run", ["all-linear"])
    fused(tmp_path / "run", tmp_path / "out", verify=True)
    fused(tmp_path / "run", tmp_path / "exact", dtype="float32", verify=True)
    rounded, exact = _tensors(tmp_path / "out"), _tensors(tmp_path / "exact")
    assert {v.dtype for v in rounded.values()} == {dtype}
    assert {v.dtype for v in exact.values()} == {mx.float32}
    for name, value in exact.items():
        assert mx.array_equal(value.astype(dtype), rounded[name]), name


def test_several_adapters_are_added_by_their_shares(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "qwen3_moe")
    plain = dict(tree_flatten(load_base(str(base)).model.parameters()))
    changes = []
    for name, kind, names in (
        ("a", "lora", ["all-linear"]),
        ("b", "dora", ["q_proj", "o_proj"]),
        ("c", "full", ["all-linear"]),
    ):
        adapted(base, tmp_path / name, names, kind)
        fused(tmp_path / name, tmp_path / f"out-{name}")
        alone = _tensors(tmp_path / f"out-{name}")
        changes.append({n: alone[n] - plain[n] for n in plain})
    runs = [f"{tmp_path}/a:0.5", f"{tmp_path}/b:-0.25", str(tmp_path / "c")]
    done = fused(tmp_path, tmp_path / "out", adapter=runs, verify=True)
    both = _tensors(tmp_path / "out")
    for name, value in plain.items():
        parts = zip((0.5, -0.25, 1.0), changes, strict=True)
        expected = value + sum(share * change[name] for share, change in parts)
        assert farthest(both[name], expected) < 1e-5, name  # float32
    assert done.drift is not None
    assert abs(done.drift.kl_fused) < 1e-6


def test_adapters_of_other_modules_are_both_there(llama: Path, tmp_path: Path) -> None:
    adapted(llama, tmp_path / "a", ["q_proj"])
    adapted(llama, tmp_path / "b", ["v_proj"])
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    done = fused(tmp_path, tmp_path / "out", adapter=runs, verify=True)
    assert done.drift is not None
    assert abs(done.drift.kl_fused) < 1e-6
    alone = fused(tmp_path / "a", tmp_path / "alone", verify=True).drift
    assert alone is not None
    assert done.drift.kl_base > 1.2 * alone.kl_base


def test_a_share_of_one_is_the_adapter_itself(llama: Path, tmp_path: Path) -> None:
    adapted(llama, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "a")
    fused(tmp_path, tmp_path / "b", adapter=[f"{tmp_path}/run:1"])
    for name, value in _tensors(tmp_path / "a").items():
        assert mx.array_equal(value, _tensors(tmp_path / "b")[name])
    half = fused(tmp_path, tmp_path / "c", adapter=[f"{tmp_path}/run:0.5"], verify=True).drift
    whole = fused(tmp_path / "run", tmp_path / "d", verify=True).drift
    assert half is not None
    assert whole is not None
    assert half.kl_base < 0.5 * whole.kl_base
    assert abs(half.kl_fused) < 1e-6


def test_what_is_not_adapted_is_copied_bit_for_bit(quantized_llama: Path, tmp_path: Path) -> None:
    adapted(quantized_llama, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "out")
    base, out = _tensors(quantized_llama), _tensors(tmp_path / "out")
    changed = {n for n, v in base.items() if not mx.array_equal(v, out[n])}
    assert {n.split(".")[4] for n in changed} == {"q_proj"}
    assert {n.split(".")[2] for n in changed} == {"1", "2"}
