"""Ten steps of training and their adapter, with a fault planted in each."""

from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.doctor import learning
from orpo_mlx.doctor.verdict import FAILED, OK, SKIPPED
from orpo_mlx.events import Callback, Notice
from orpo_mlx.training.metrics.log import MetricsLog
from orpo_mlx.training.optim import Optimizer

pytestmark = pytest.mark.touchy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that passed. Do not write there."""
    folder = tmp_path_factory.mktemp("doctor")
    check = learning.check_training(folder)
    assert check.status == OK, check.detail
    assert check.detail.startswith("10 steps took the loss from ")
    return folder


def test_what_is_saved_is_what_was_trained(trained: Path) -> None:
    check = learning.check_adapter(trained)
    assert check.status == OK, check.detail


def test_a_training_that_does_not_learn_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Optimizer, "update", lambda *arguments: 1.0)
    check = learning.check_training(tmp_path)
    assert (check.name, check.status) == ("training", FAILED)
    assert "; 10 steps should take it under " in check.detail


def test_a_training_that_warns_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(config: TrainConfig, callbacks: list[Callback]) -> None:
        callbacks[0](Notice("The fast path is not exact for this model.", warning=True))
        config.output.mkdir()
        log = MetricsLog(config.output / "metrics.jsonl")
        log.write(0, {"eval_loss": 6.0})
        for step in range(1, learning.STEPS + 1):
            log.write(step, {"loss": 4.0})
        log.write(learning.STEPS, {"eval_loss": 3.0})

    monkeypatch.setattr(learning, "train", warning)
    check = learning.check_training(tmp_path)
    assert (check.name, check.status) == ("training", FAILED)
    assert check.detail.endswith("; it warned: The fast path is not exact for this model.")


def test_an_adapter_that_loads_as_another_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(trained / "base")
    (tmp_path / "held_out.jsonl").symlink_to(trained / "held_out.jsonl")
    run = tmp_path / "run"
    run.mkdir()
    for file in (trained / "run").iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    weights = mx.load(str(run / "adapters.safetensors"))
    name = next(name for name in sorted(weights) if name.endswith("lora_b"))
    changed = {n: 1.1 * w if n == name else w for n, w in weights.items()}
    mx.save_safetensors(str(run / "adapters.safetensors"), changed)
    check = learning.check_adapter(tmp_path)
    assert (check.name, check.status) == ("adapter", FAILED)
    assert check.detail.startswith("loaded by mlx_lm, its log-probs differ by ")


def test_without_a_training_the_adapter_does_not_apply(tmp_path: Path) -> None:
    assert learning.check_adapter(tmp_path).status == SKIPPED
