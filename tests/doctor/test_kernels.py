"""The doctor's checks of single operations, right and with a fault in each."""

from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.doctor import kernels, toys
from orpo_mlx.doctor.verdict import FAILED, OK
from orpo_mlx.training.forward_path import fast_path

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


def test_gated_delta_in_chunks_is_right_and_its_seconds_are_shown() -> None:
    check = kernels.check_gated_delta()
    assert check.status == OK
    assert check.detail.startswith("80 tokens, 32 heads of 128, with gradients: loop ")
    assert "; chunks " in check.detail
    assert "kernel" not in check.detail


def test_a_kernel_that_forgets_its_state_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(state: mx.array, **given: Any) -> Any:
        return kernels.gated_delta(**given, state=0 * state)

    monkeypatch.setattr(kernels, "fused_gated_delta", forgetful)
    monkeypatch.setattr(kernels.backend, "is_cpu", lambda: False)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    check = kernels.check_gated_delta()
    assert check.status == FAILED
    assert "MLX's kernel" in check.detail
    assert check.remedy.startswith("Runs use another form then.")


def test_log_probs_are_measured_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "VOCABULARY", 2048)
    check = kernels.check_log_probs()
    assert check.status == OK
    ours, theirs = check.detail.removeprefix("256 x 2,048: ").split("; ")
    assert ours.startswith("ours: off by ")
    assert theirs.startswith("mx.fast.cross_entropy: off by ")
    assert float(ours.split()[3].rstrip(",")) < 1e-5


def test_the_pairs_have_calls_of_few_tokens() -> None:
    path, _ = fast_path(toys.build_adapted("llama", dtype=mx.float32, bits=None))
    pairs = toys.build_pairs()
    calls = path.batch(pairs, range(len(pairs)), "response").calls
    assert any(2 <= call.ids.shape[1] <= 8 for call in calls)
