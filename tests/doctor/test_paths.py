"""Fast against plain and GPU against CPU, with faults planted in what is compared.

That all of them pass as things are is seen by the command's own test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import qwen3_moe, qwen3_next

from orpo_mlx import backend
from orpo_mlx.doctor import paths, toys
from orpo_mlx.doctor.paths import Difference, Numbers
from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED, Check
from orpo_mlx.model.tree_forward import PrefixKVCache
from orpo_mlx.training import forward_path as training_path

pytestmark = pytest.mark.touchy


@pytest.fixture
def llama_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "FAMILIES", {"llama": {}})


def tamper_gradient(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The right log-probs of the fast path with gradients that are `factor` times too large."""
    right = training_path.hidden_logps

    def tampered(*arguments: Any, **named: Any) -> mx.array:
        logps = right(*arguments, **named)
        return factor * logps + mx.stop_gradient((1 - factor) * logps)

    monkeypatch.setattr(training_path, "hidden_logps", tampered)


@pytest.mark.parametrize(("kind", "factor"), [("float32", 1.01), ("4-bit", 1.01), ("float16", 1.1)])
def test_a_tampered_gradient_is_named(
    llama_alone: None, monkeypatch: pytest.MonkeyPatch, kind: str, factor: float
) -> None:
    tamper_gradient(monkeypatch, factor)
    check = paths.check_fast_path(kind)
    assert (check.name, check.status) == (f"fast path, {kind}", FAILED)
    assert f"gradients by {factor - 1:.1e}" in check.detail
    assert "most in model.layers." in check.detail
    assert check.remedy.startswith("Train with --plain")


def test_an_offset_off_by_one_is_named(monkeypatch: pytest.MonkeyPatch, llama_alone: None) -> None:
    right = PrefixKVCache.fork

    def shifted(level: PrefixKVCache, rows: mx.array) -> PrefixKVCache:
        new = right(level, rows)
        new.offset += 1
        return new

    monkeypatch.setattr(PrefixKVCache, "fork", shifted)
    for kind in ("float32", "bfloat16"):
        check = paths.check_fast_path(kind)
        assert (check.status, check.detail.split(":")[0]) == (FAILED, "llama"), kind


def test_a_model_that_takes_the_plain_path_is_named(
    llama_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_path, "split_model", lambda model: None)
    check = paths.check_fast_path("float32")
    assert check.status == FAILED
    assert "llama: ValueError: takes the plain path, since its head" in check.detail


def test_a_kernel_that_is_missing_is_named_and_the_other_families_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toys, "FAMILIES", {f: toys.FAMILIES[f] for f in ("llama", "qwen3_moe")})

    def missing(*arguments: Any) -> mx.array:
        raise RuntimeError("GatherMM has no CUDA implementation.")

    monkeypatch.setattr(qwen3_moe.Qwen3MoeSparseMoeBlock, "__call__", missing)
    check = paths.check_fast_path("float32")
    assert check.status == FAILED
    assert check.detail == "qwen3_moe: RuntimeError: GatherMM has no CUDA implementation."


def test_without_a_gpu_the_comparison_does_not_apply(on_cpu: None) -> None:
    check = paths.check_gpu("float32")
    assert (check.status, check.detail) == (SKIPPED, "no GPU here")


def test_quantized_halves_are_compared_where_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = paths.GPU_ONLY
    monkeypatch.setattr(backend, "is_cpu", lambda: True)
    check = paths.check_fast_path(kind)
    assert (check.status, check.detail) == (SKIPPED, "the CPU computes 4-bit bases in float32")
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    monkeypatch.setattr(paths, "_verdict", lambda name, *_: Check(name, OK, "compared"))
    assert paths.check_fast_path(kind).detail == "compared"


def test_a_gpu_that_computes_something_else_is_named(
    llama_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "compile", lambda step: step)  # here g++ would, for 15 s
    monkeypatch.setattr(backend, "is_cpu", lambda: False)
    assert paths.check_gpu("float32").status == OK
    right = paths._on_cpu

    @contextmanager
    def tampered() -> Iterator[None]:
        with right(), monkeypatch.context() as inside:
            tamper_gradient(inside, 1.05)
            yield

    monkeypatch.setattr(paths, "_on_cpu", tampered)
    check = paths.check_gpu("float32")
    assert (check.name, check.status) == ("GPU against CPU, float32", FAILED)
    assert "gradients by 4.8e-02 (allowed 0.01)" in check.detail


def test_what_is_not_finite_or_not_there_is_infinitely_far() -> None:
    one, nan = np.ones(2), np.full(2, np.nan)
    right = Numbers([one], {"a": one, "b": one})
    assert paths.difference_from(right, right) == Difference(0.0, 0.0, "a")
    assert paths.difference_from(Numbers([nan], right.gradients), right).logps == np.inf
    assert paths.difference_from(Numbers([one], {"a": one, "b": nan}), right) == Difference(
        np.inf, 0.0, "b"
    )
    assert paths.difference_from(Numbers([one], {"b": one}), right) == Difference(np.inf, 0.0, "a")


def test_the_worst_of_several_is_the_worst_in_each_respect() -> None:
    assert paths.worst([Difference(0.2, 0.1, "a"), Difference(0.1, 0.3, "b")]) == Difference(
        0.2, 0.3, "a"
    )


def test_the_pairs_go_past_the_window_and_share_what_a_tree_shares() -> None:
    pairs = toys.build_pairs()
    shared = 3 * toys.WINDOW // 2
    assert all((p.prompt[:shared] == pairs[0].prompt[:shared]).all() for p in pairs)
    assert len({p.prompt[shared] for p in pairs}) == len(pairs)
    assert pairs[0].chosen[0] != pairs[0].rejected[0]
    assert (pairs[2].chosen[:2] == pairs[2].rejected[:2]).all()


@pytest.mark.parametrize("kind", ["float32", "4-bit"])
def test_no_token_is_between_two_experts(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    gaps: list[float] = []

    def watched(right: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(block: Any, x: mx.array) -> mx.array:
            scores = mx.sort(block.gate(x).astype(mx.float32), axis=-1)
            gaps.append((scores[..., -block.top_k] - scores[..., -block.top_k - 1]).min().item())
            return right(block, x)

        return call

    kept = paths.KINDS[kind]
    models = {f: toys.build_adapted(f, dtype=kept.dtype, bits=kept.bits) for f in toys.MIXTURES}
    for block in (qwen3_moe.Qwen3MoeSparseMoeBlock, qwen3_next.Qwen3NextSparseMoeBlock):
        monkeypatch.setattr(block, "__call__", watched(block.__call__))
    for family, model in models.items():
        for pair in toys.build_pairs(family):
            for response in (pair.chosen, pair.rejected):
                mx.eval(model(mx.array(np.concatenate([pair.prompt, response])[None])))
    assert len(gaps) == 2 * 2 * 2 * (len(toys.LENGTHS) - 1)
    assert min(gaps) > 1e-3
