"""The benchmark: its workloads and its rules of fairness."""

import sys
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks import bench, contestants, measure
from benchmarks.base import WrittenAdapter, dimensions, write_adapter, write_random_base
from benchmarks.contestants import DoesNotFitError, Worker
from benchmarks.workloads import WORKLOADS, count_tokens, draw_pairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import load_weights
from tests.alarm import HANG_SECONDS
from tests.benchmarks.conftest import Bench

TINY = ["--layers", "2", "--hidden", "64", "--vocab", "97"]
ADAPTER = WrittenAdapter(Path("adapter"), ["self_attn.q_proj"], 2, 1000)


def settings(scratch: Path, **changes: Any) -> measure.BenchSettings:
    sizes = dimensions(
        {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 192,
            "vocab_size": 97,
            "num_attention_heads": 1,
        },
        ADAPTER,
    )
    given = measure.BenchSettings(
        scratch / "base",
        ADAPTER,
        97,
        sizes,
        scratch,
        {},
        1,
        compiled=False,
        grad_checkpoint=False,
        rank=8,
    )
    return given._replace(**changes)


def contestant(name: str, **facts: Any) -> measure.Contestant:
    made = measure.Contestant(name)
    layout = measure.LAYOUTS[name]
    made.facts = {"quantized": [], "trainable": 1000, "compiled": False, "layout": layout, **facts}
    return made


def test_the_workloads_are_those_of_the_table() -> None:
    shapes = {
        name: ({(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs}, len(pairs))
        for name, workload in WORKLOADS.items()
        if name != "mix" and (pairs := draw_pairs(workload, 49152))
    }
    assert shapes == {
        "short": ({(48, 64, 64)}, 4),
        "system": ({(560, 96, 96)}, 4),
        "long-prompt": ({(768, 96, 96)}, 2),
        "long-response": ({(64, 512, 512)}, 2),
    }
    assert len(WORKLOADS["mix"].lengths) == 16
    assert count_tokens(draw_pairs(WORKLOADS["short"], 99)) == 4 * 2 * (48 + 64)


def test_tokens_are_drawn_alike_every_time_and_share_the_system_prompt_only() -> None:
    first, again = (draw_pairs(WORKLOADS["system"], 49152) for _ in range(2))
    assert first == again
    assert len({tuple(p.prompt[:512]) for p in first}) == 1
    assert len({tuple(p.prompt[512:]) for p in first}) == 4


def test_the_counted_sizes_are_those_of_the_written_model(tmp_path: Path) -> None:
    config = write_random_base(bench.RandomBase("llama", 3, 192, 97), tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", tmp_path / "a.safetensors", num_layers=2, rank=8)
    model, _, _ = load_weights(tmp_path / "base", "base")
    sizes = dimensions(config, adapter)
    block = model.layers[0]
    linear = sum(m.weight.size for _, m in block.named_modules() if isinstance(m, nn.Linear))
    assert (sizes.linear, sizes.layers, sizes.trained_layers) == (linear, 3, 2)
    assert sizes.heads * sizes.head_dim == block.self_attn.q_proj.weight.shape[0]
    stored = mx.load(str(adapter.file))
    assert isinstance(stored, dict)
    assert sizes.adapter * 2 == sum(v.size for v in stored.values())
    assert all(mx.any(v != 0).item() for v in stored.values())


def test_a_base_with_experts_is_refused() -> None:
    config = {"num_attention_heads": 1, "intermediate_size": 1, "num_local_experts": 4}
    with pytest.raises(OrpoError, match="dense text models only, not for experts"):
        dimensions(config, ADAPTER)


@pytest.mark.parametrize(
    "unlike",
    [{"quantized": ["lm_head"]}, {"trainable": 999}, {"compiled": True}, {"layout": "rows"}],
    ids=lambda change: next(iter(change)),
)
def test_unlike_contestants_are_an_unfair_comparison(
    tmp_path: Path, unlike: dict[str, Any]
) -> None:
    alike = [contestant("fast"), contestant("plain")]
    measure._check_alike(alike, settings(tmp_path))
    with pytest.raises(OrpoError, match="Not a fair comparison: peer has"):
        measure._check_alike([*alike, contestant("peer", **unlike)], settings(tmp_path))


class FakeWorker:
    """Answers with the given rates, the last one forever."""

    def __init__(self, *rates: float):
        self.rates = list(rates)

    def ask(self, do: str) -> dict[str, float]:
        assert do == "rate"
        return {"gflops": self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]}


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RATE_PAUSE_SECONDS", 0)


@pytest.mark.usefixtures("no_pause")
def test_unequal_matmul_rates_are_an_unfair_comparison() -> None:
    slow, fast = contestant("peer"), contestant("fast")
    slow.worker, fast.worker = FakeWorker(40.0), FakeWorker(100.0)  # type: ignore[assignment]
    with pytest.raises(OrpoError, match="rates in GFLOP/s are peer 40, fast 100"):
        measure._check_rates([slow, fast])


@pytest.mark.usefixtures("no_pause")
def test_a_matmul_rate_that_other_work_disturbed_is_measured_again() -> None:
    disturbed, quiet = contestant("peer"), contestant("fast")
    disturbed.worker = FakeWorker(40.0, 60.0, 97.0)  # type: ignore[assignment]
    quiet.worker = FakeWorker(100.0)  # type: ignore[assignment]
    measure._check_rates([disturbed, quiet])
    assert disturbed.gflops == 97.0


@pytest.mark.usefixtures("no_pause")
def test_a_machine_that_slows_down_after_the_first_rate_is_fair_to_all() -> None:
    first, second = contestant("fast"), contestant("plain")
    first.worker = FakeWorker(150.0, 110.0)  # type: ignore[assignment]
    second.worker = FakeWorker(109.0)  # type: ignore[assignment]
    measure._check_rates([first, second])
    assert (first.gflops, second.gflops) == (110.0, 109.0)


def test_gradients_of_other_tensors_are_an_unfair_comparison(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "one.safetensors"), {"a": mx.ones(4), "b": mx.ones(2)})
    mx.save_safetensors(
        str(tmp_path / "two.safetensors"), {"a": mx.ones(4), "b": mx.array([1.0, 2.0])}
    )
    mx.save_safetensors(str(tmp_path / "three.safetensors"), {"a": mx.ones(4)})
    one, two, three = (tmp_path / f"{n}.safetensors" for n in ("one", "two", "three"))
    sizes = measure.gradient_differences(two, one)
    assert sizes["tensor_difference"] == pytest.approx(1 / np.sqrt(2))
    assert sizes["gradient_difference"] == pytest.approx(1 / np.sqrt(6))
    with pytest.raises(OrpoError, match="three trains different tensors"):
        measure.gradient_differences(three, one)


def test_an_unknown_workload_is_named() -> None:
    options = bench.BenchOptions(bench.RandomBase(), workloads=["shrt"])
    with pytest.raises(OrpoError, match="--workload shrt: allowed are short, system"):
        next(bench.iter_results(options, lambda text: None))


@pytest.mark.touchy
def test_a_worker_that_outgrows_the_memory_is_ended_and_that_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "greedy.py"
    script.write_text(
        "import sys, time\nprint('{}', flush=True)\nsys.stdin.readline()\n"
        "held = bytearray(b'x' * 10**8)\n"
        f"time.sleep({HANG_SECONDS})\n"
    )
    monkeypatch.setattr(contestants, "WORKER", script)
    worker = Worker("peer", sys.executable, tmp_path / "job.json", 10**8, {})
    try:
        # The copy is made next to the original: 0.2 GB for a moment.
        with pytest.raises(DoesNotFitError, match=r"ended at 0\.[12] GB, the limit is 0\.1 GB"):
            worker.ask("pass")
    finally:
        worker.end()


@pytest.mark.touchy
def test_a_worker_that_dies_with_a_question_unread_is_ended_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "killed.py"
    script.write_text("import os\nprint('{}', flush=True)\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr(contestants, "WORKER", script)
    left = contestant("peer")
    left.worker = Worker("peer", sys.executable, tmp_path / "job.json", 10**10, {})
    left.worker._process.wait()
    assert left.ask("pass", file="x" * 10) is None
    assert left.failure == "killed at 0.0 GB"
    assert left.worker is None


class Hungry:
    """A worker of 3 GB, on a machine whose limit is 4 GB; the peer takes 5 in a pass."""

    started: ClassVar[list[str]] = []

    def __init__(self, name: str, *given: Any):
        self.name, self._others = name, given[-1]
        self.peak_resident_bytes = 3 * 10**9
        self.started.append(name)

    def ask(self, do: str, file: str = "") -> dict[str, Any]:
        if self._others() + self.resident_bytes() > 4 * 10**9 or (self.name, do) == (
            "peer",
            "pass",
        ):
            raise DoesNotFitError("ended")
        if do == "rate":
            return {"gflops": 100.0}
        if do == "pass":
            return {"seconds": [1.0], "cpu_seconds": 1.0, "peak_bytes": 10**9}
        mx.save_safetensors(file, {"a": mx.ones(2)})
        facts = contestant(self.name, calls=[(4, 111, 0)], scored=8, loss=1.0).facts
        return facts | {"kept_trunk": False, "recomputed": 0, "loss_in_blocks": 1.0}

    def resident_bytes(self) -> int:
        return 3 * 10**9

    def end(self) -> None:
        pass


@pytest.mark.usefixtures("no_pause")
def test_tools_that_do_not_fit_together_are_measured_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "Worker", Hungry)
    monkeypatch.setattr(Hungry, "started", [])
    mx.save_safetensors(str(tmp_path / "peer_in_blocks.safetensors"), {"a": mx.ones(2)})
    logs: list[str] = []
    three = settings(tmp_path, pythons={"fast": "", "plain": "", "peer": ""})
    results = measure.measure_workload("short", WORKLOADS["short"], three, logs.append)
    assert Hungry.started == ["fast", "plain", "fast", "plain", "peer"]
    assert "short: memory is short for all tools at once: one at a time" in logs
    assert results["fast"]["passes"] == results["plain"]["passes"] == 1
    assert results["peer"]["does_not_fit"] == "ended"
    assert results["peer"]["loss"] == 1.0


def test_what_does_not_fit_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    peer = contestant(
        "peer", calls=[(4, 111, 0)] * 2, scored=888, loss=1.0, kept_trunk=False, recomputed=0
    )
    peer.fail(DoesNotFitError("killed at 14.0 GB"))
    result = measure._result(
        WORKLOADS["short"], draw_pairs(WORKLOADS["short"], 97), peer, settings(tmp_path)
    )
    assert result["does_not_fit"] == "killed at 14.0 GB"
    assert result["seconds_per_step"] is None
    assert result["gflop_per_step"] > result["needed_gflop_per_step"]


@pytest.mark.touchy
def test_a_failing_worker_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('no such model')")
    monkeypatch.setattr(contestants, "WORKER", script)
    with pytest.raises(OrpoError, match=r"plain worker failed:\n(.|\n)*no such model"):
        Worker("plain", sys.executable, tmp_path / "job.json", 10**8, {})


@pytest.mark.touchy
def test_the_script_names_a_users_mistake(bench_script: Bench) -> None:
    done = bench_script("--workload", "shrt", *TINY)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("--workload shrt: allowed are short, system, long-prompt")
