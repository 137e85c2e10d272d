"""The peer's side of the benchmark, with a substitute that has the surface of its ORPO trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure
from tests.benchmarks.conftest import SCRIPT, Bench

pytestmark = pytest.mark.touchy

# Same names, signatures and padding as mlx-lm-lora 5.10.2; plain maths.
TRAINER = """
from dataclasses import dataclass
import mlx.core as mx
import mlx.nn as nn
import numpy as np

@dataclass
class ORPOTrainingArgs:
    batch_size: int
    iters: int
    steps_per_report: int
    steps_per_save: int
    max_seq_length: int
    beta: float
    grad_checkpoint: bool
    adapter_file: str
    recurrence_chunk_size: int = 64

def model_uses_recurrence(model):
    return False

def iterate_orpo_batches(dataset, batch_size, max_seq_length, train=False):
    order = sorted(range(len(dataset)), key=lambda i: len(dataset[i]["chosen"]))
    for start in range(0, len(order), batch_size):
        rows = [dataset[i] for i in order[start : start + batch_size]]
        longest = max(len(r[k]) for r in rows for k in ("chosen", "rejected"))
        length = -(-longest // 8) * 8
        found = {}
        for key in ("chosen", "rejected"):
            ids = np.zeros((len(rows), length), np.int32)
            mask = np.zeros((len(rows), length), np.float32)
            for i, row in enumerate(rows):
                ids[i, : len(row[key])] = row[key]
                mask[i, row[key + "_prompt_length"] : len(row[key])] = 1
            found[key] = mx.array(ids), mx.array(mask)
        (c, cm), (r, rm) = found["chosen"], found["rejected"]
        yield c, r, cm, rm, mx.ones(len(rows))

def _logps(model, ids, mask):
    logps = -nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="none")
    return (logps * mask[:, 1:]).sum(-1) / mask[:, 1:].sum(-1)

def orpo_loss_from_model(model, chosen, rejected, chosen_mask, rejected_mask, scores, beta):
    c, r = _logps(model, chosen, chosen_mask), _logps(model, rejected, rejected_mask)
    odds = (c - r) - (mx.log1p(-mx.exp(c)) - mx.log1p(-mx.exp(r)))
    return mx.mean(-c - beta * nn.log_sigmoid(odds)), None

def train_orpo(model, optimizer, train_dataset, args, training_callback):
    assert mx.device_info()["max_recommended_working_set_size"] > 0
    assert not args.grad_checkpoint
    step = nn.value_and_grad(model, lambda m, *b: orpo_loss_from_model(m, *b, beta=args.beta)[0])
    for _ in range(args.iters):
        batch = next(iterate_orpo_batches(train_dataset, args.batch_size, 10**6, train=True))
        print("seen", batch[0][:, 0].tolist())
        loss, gradients = step(model, *batch)
        optimizer.update(model, gradients)
        mx.eval(model.state, loss)
        training_callback.on_train_loss_report({"train_loss": loss.item()})
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The substitute is installed, as separate processes see it."""
    package = tmp_path / "mlx_lm_lora" / "trainer"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "orpo_trainer.py").write_text(TRAINER)
    info = tmp_path / "mlx_lm_lora-5.10.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-lm-lora\nVersion: 5.10.2\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("peer")
def test_the_script_measures_both_paths_and_the_peer_and_their_numbers_agree(
    bench_script: Bench, tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    contestants = [word for name in measure.LAYOUTS for word in ("--contestant", name)]
    done = bench_script(
        *contestants, "--peer-python", sys.executable, "--workload", "short", "--steps", 1,
        "--layers", 2, "--num-layers", 1, "--hidden", 64, "--vocab", 97, "--json", file,
    )  # fmt: skip
    assert done.status == 0, done.err
    results = json.loads(file.read_text())["workloads"]["short"]
    fast, plain, peer = (results[name] for name in ("fast", "plain", "peer"))
    for entry in (fast, plain, peer):
        assert entry["seconds_per_step"] > 0
        assert entry["peak_memory_gb"] > 0
        assert entry["pairs_per_second"] == pytest.approx(4 / entry["seconds_per_step"])
        assert entry["trainable_parameters"] == fast["trainable_parameters"]
    assert plain["loss_difference"] < 1e-5
    assert plain["gradient_difference"] <= plain["tensor_difference"] < 1e-4
    assert peer["version"] == "5.10.2"
    assert peer["loss_difference"] < 1e-5
    assert peer["loss_difference_in_blocks"] < 1e-5
    assert peer["gradient_difference_in_blocks"] < 1e-4
    # The trunk below the last block is kept by the fast path alone.
    assert fast["kept_trunk"] and not plain["kept_trunk"]
    assert fast["gflop_per_step"] < plain["gflop_per_step"]
    # The peer pads to a multiple of 8 and feeds all but the last token: 111 of 112.
    assert fast["gflop_ratio"] > 1.2
    assert fast["time_ratio"] == pytest.approx(peer["seconds_per_step"] / fast["seconds_per_step"])
    assert "fast path" in done.out and "mlx-lm-lora 5.10.2" in done.out


def test_without_its_interpreter_the_peer_is_left_out() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--contestant", "peer"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "--contestant peer needs --peer-python" in done.stderr
