"""This project as a contestant: the steps of its own `Run`, on the fast or on the plain path."""

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.batching.prefix_tree import Batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Listeners
from orpo_mlx.model.base import Base, load_weights
from orpo_mlx.model.grad_checkpoint import kept_blocks
from orpo_mlx.model.layer_hooks import first_trained
from orpo_mlx.model.mlx_lm_api import functions_replaced
from orpo_mlx.training.build import build_run
from orpo_mlx.training.forward_path import arrays_of
from orpo_mlx.training.run import Run

ONES = (mx.array(1.0), mx.array(1.0))  # beta, scale


class Own:
    """A run that is never saved; its optimizer starts from the given adapter."""

    def __init__(self, job: dict[str, Any], kind: str):
        self._job = job
        folder = Path(job["model"])
        model, config, notices = load_weights(folder, job["model"])
        base = Base(model, None, config, folder, {}, {}, False, notices)
        settings = TrainConfig(
            model=job["model"],
            data=["drawn"],
            output=Path(job["scratch"]) / kind,
            steps=10**6,
            batch_size=job["batch_size"],
            learning_rate=job["learning_rate"],
            schedule="constant",
            warmup=0,
            beta=job["beta"],
            rank=job["rank"],
            alpha=job["scale"] * job["rank"],
            num_layers=job["num_layers"],
            grad_checkpoint=job["grad_checkpoint"],
            plain=kind == "plain",
        )
        pairs = [_encoded(number, pair) for number, pair in enumerate(job["pairs"])]
        self.run = build_run(settings, base, pairs, [], Listeners([]))
        if self.run.train_step.compiled != job["compile"]:
            self.run.train_step.set_compiled(job["compile"])
        weights = mx.load(job["adapter"])
        assert isinstance(weights, dict)
        self.run.optimizer.restore(weights, self.run.optimizer.state()[1])
        self.run.open_trunk_cache()
        mx.eval(model.parameters())

    def fixed(self, file: str) -> dict[str, Any]:
        """Facts, and loss and gradients of the first pairs as one micro-batch."""
        run = self.run
        weights = run.base.model.trainable_parameters()
        batch = run.path.batch(run.train, range(self._job["batch_size"]), "response")
        metrics, gradients = run.train_step.gradients(
            weights, arrays_of(batch), mx.random.key(0), mx.array(self._job["beta"]), mx.array(1.0)
        )
        run.base.model.update(weights)
        mx.eval(metrics, gradients)
        flat = dict(tree_flatten(gradients))
        mx.save_safetensors(file, flat)
        batches = self._batches()
        # Without parts the head runs at every position.
        scored = [b.computed if run.path.parts is None else len(b.targets) for b in batches]
        return {
            "loss": metrics["loss"].mean().item(),
            "trainable": sum(v.size for v in flat.values()),
            "quantized": [p for p, m in run.base.model.named_modules() if "scales" in m],
            "compiled": run.train_step.compiled,
            "kept_trunk": run.train_step.trunk_cache is not None,
            "layout": run.path.layout,
            "recomputed": _recomputed(run),
            "calls": [call for b in batches for call in _shapes(b)],
            "scored": sum(scored),
            "steps": self._steps(),
            **self._recurrence(batch),
        }

    def _recurrence(self, batch: Batch) -> dict[str, float]:
        """The share of a step that gated delta layers take, by leaving their recurrence out."""
        run, loops = self.run, self.run.path.loops
        if not loops:
            return {}
        weights, arrays = run.base.model.trainable_parameters(), arrays_of(batch)

        def seconds() -> float:
            start = time.perf_counter()
            mx.eval(run.train_step.micro_step(weights, arrays, mx.random.key(0), *ONES))
            run.base.model.update(weights)
            return time.perf_counter() - start

        whole = seconds()
        with functions_replaced([(owner, name, _left_out) for owner, name, _ in loops.values()]):
            return {"recurrence_share": 1 - seconds() / whole}

    def train(self, between: Callable[[list[float], int], None]) -> None:
        """Epochs of the run; the data's order is the run's own."""
        while True:
            seconds, peak = [], 0.0
            for _ in range(self._steps()):
                start = time.perf_counter()
                metrics = self.run.do_step()
                seconds.append(time.perf_counter() - start)
                assert metrics is not None
                peak = max(peak, metrics["peak_memory_gb"])
            between(seconds, round(peak * 1e9))

    def _steps(self) -> int:
        return len(self._job["pairs"]) // int(self._job["batch_size"])

    def _batches(self) -> list[Batch]:
        """The micro-batches of one pass."""
        run = self.run
        parts = [part for step in range(self._steps()) for part in run.plan.step(step)]
        return [run.path.batch(run.train, part, "response") for part in parts]


def _left_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """In place of a gated delta update: values pass, states stay."""

    @wraps(original)
    def function(q: Any, k: Any, v: Any, *rest: Any, **_: Any) -> Any:
        state = rest[4] if len(rest) > 4 else None
        zeros = mx.zeros((len(v), *v.shape[2:], k.shape[3]))
        return v, zeros if state is None else state

    return function


def _recomputed(run: Run) -> int:
    """How many blocks run forward again for the gradient."""
    if not run.config.grad_checkpoint:
        return 0
    count = len(run.base.model.layers)
    return len(set(range(first_trained(run.base.model), count)) - set(kept_blocks(count)))


def _encoded(number: int, pair: list[list[int]]) -> EncodedPair:
    prompt, chosen, rejected = (np.array(ids, dtype=np.int32) for ids in pair)
    return EncodedPair(prompt, chosen, rejected, f"pair {number}")


def _shapes(batch: Batch) -> list[tuple[int, int, int]]:
    """Rows, tokens and keys before them of each call."""
    shapes: list[tuple[int, int, int]] = []
    for call in batch.calls:
        before = 0 if call.parent < 0 else sum(shapes[call.parent][1:])
        shapes.append((*call.ids.shape, before))
    return shapes
