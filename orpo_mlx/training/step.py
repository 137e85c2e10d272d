"""One optimizer step: the gradient of its pairs, a micro-batch at a time, and the update.

The loop and the run decide when steps come and what is written between them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import DeviceError, OrpoError
from orpo_mlx.events import Listeners, MicroBatchDone
from orpo_mlx.model import lora
from orpo_mlx.model.base import why_not_finite
from orpo_mlx.run_folder.checkpoints import what_is_kept
from orpo_mlx.supervisor.device_errors import is_device_failure, is_metal_failure
from orpo_mlx.training.forward_path import BatchArrays, ForwardPath, arrays_of
from orpo_mlx.training.optim import Optimizer, learning_rate_at
from orpo_mlx.training.outputs import mean_metrics, pair_metrics, pair_outputs
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.trunk_cache import TrunkCache


class TrainStep:
    """Takes steps; which one is an argument, so that a run can continue at any."""

    def __init__(
        self,
        config: TrainConfig,
        pairs: Sequence[EncodedPair],
        plan: Plan,
        path: ForwardPath,
        optimizer: Optimizer,
        listeners: Listeners,
        *,
        steps: int,  # of the whole run, for the learning rate
        compiled: bool,
    ):
        self.config, self.pairs, self.plan, self.path = config, pairs, plan, path
        self.optimizer, self.listeners, self.steps = optimizer, listeners, steps
        self.trunk_cache: TrunkCache | None = None
        self.traces = 0  # runs of the step's Python body
        self._half = any(v.dtype == mx.float16 for _, v in tree_flatten(self.model.parameters()))
        self.set_compiled(compiled)

    @property
    def model(self) -> nn.Module:
        return self.path.model

    def set_compiled(self, compiled: bool) -> None:
        """Whether `gradients` is compiled, once for each shape of a micro-batch."""
        self.compiled = compiled
        self.gradients = mx.compile(self.micro_step) if compiled else self.micro_step

    def take(self, step: int) -> dict[str, float] | None:
        """Optimizer step `step`, from 0, and its metrics.

        None if a stop was asked for in its middle: nothing has changed then.
        """
        config = self.config
        started, tokens = time.perf_counter(), 0
        mx.reset_peak_memory()
        indices = self.plan.step(step)
        beta, weights = mx.array(config.beta), self.model.trainable_parameters()
        scale = mx.array(loss_scale(self.pairs, indices, half=self._half))
        total: Any = None
        parts: list[dict[str, mx.array]] = []
        for number, micro_batch in enumerate(indices):
            if self.listeners.stop:
                return None
            limit = self.plan.limit(micro_batch)
            batch = self.path.batch(self.pairs, micro_batch, config.nll_on, limit)
            states = self.trunk_cache.states(batch) if self.trunk_cache else None
            metrics, gradients = self.gradients(
                weights, arrays_of(batch, states), self._dropout_key(step, number), beta, scale
            )
            # Tracing leaves its placeholders in the model.
            self.model.update(weights)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            _evaluate(total, metrics)
            self._check_finite(metrics["loss"], batch.indices, step)
            parts.append(metrics)
            tokens += batch.tokens
            self.listeners(MicroBatchDone(step + 1, number + 1, len(indices)))
        synchronize()
        rate = self._learning_rate(step)
        norm = self.optimizer.update(total, rate)
        if not math.isfinite(norm):
            raise OrpoError(self._not_finite("gradient", np.concatenate(indices), step))
        values = {n: np.concatenate([np.array(p[n]) for p in parts]) for n in parts[0]}
        return mean_metrics(values) | {
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / (time.perf_counter() - started),
            "peak_memory_gb": mx.get_peak_memory() / 1e9,
        }

    def micro_step(
        self, weights: Any, batch: BatchArrays, key: mx.array, beta: mx.array, scale: mx.array
    ) -> tuple[dict[str, mx.array], Any]:
        """Metrics of each pair and the float32 gradient; `scale` avoids underflow in float16."""
        self.traces += 1

        def loss_of(weights: Any) -> tuple[mx.array, dict[str, mx.array]]:
            self.model.update(weights)
            lora.reset_dropout(self.model, key)
            outputs = pair_outputs(self.path, batch, beta=beta)
            # A plain mean over the step's pairs, however they are cut into micro-batches.
            loss = scale * outputs.losses.loss.sum() / self.config.batch_size
            return loss, pair_metrics(*outputs, beta)

        with self.path.differentiated():
            (_, metrics), gradients = mx.value_and_grad(loss_of)(weights)
        return metrics, tree_map(lambda g: g.astype(mx.float32) / scale, gradients)

    def _dropout_key(self, step: int, micro_step: int) -> mx.array:
        """The masks follow from seed, step and micro-step alone."""
        sequence = np.random.SeedSequence([self.config.seed, step, micro_step])
        return mx.random.key(sequence.generate_state(1, np.uint64).item())

    def _learning_rate(self, step: int) -> float:
        config = self.config
        return learning_rate_at(
            step,
            peak=config.peak_learning_rate,
            steps=self.steps,
            warmup=config.warmup,
            schedule=config.schedule,
        )

    def _check_finite(self, losses: mx.array, indices: np.ndarray, step: int) -> None:
        finite = np.isfinite(np.array(losses))
        if not finite.all():
            raise OrpoError(self._not_finite("loss", indices[~finite], step))

    def _not_finite(self, what: str, indices: np.ndarray, step: int) -> str:
        locations = ", ".join(self.pairs[int(i)].location for i in indices)
        if step == 0 and what == "loss":  # nothing has been trained
            return (
                f"The base gives NaN or infinite numbers for {locations}: "
                f"{why_not_finite(self.model)}."
            )
        if step == 0:
            return (
                f"The gradient is not finite at step 1 (pairs: {locations}), before anything has "
                "been trained: the learning rate is not the cause. Look at these pairs, or train "
                "other layers (--target-modules, --num-layers)."
            )
        return (
            f"The {what} is not finite at step {step + 1} (pairs: {locations}). "
            f"Lower --learning-rate, or look at these pairs. {what_is_kept(self.config.output)}"
        )


def loss_scale(pairs: Sequence[EncodedPair], indices: Sequence[np.ndarray], *, half: bool) -> float:
    """1, or for a float16 base a power of 2 that makes a token's gradient about 1."""
    if not half:
        return 1.0
    tokens = [len(pairs[int(i)].chosen) for part in indices for i in part]
    return float(2 ** round(math.log2(max(sum(tokens), 1))))


def _evaluate(*arrays: Any) -> None:
    """Compute; raises DeviceError with what helps where a GPU's work is ended, or memory lacks."""
    with _metal_errors():
        mx.eval(*arrays)


def synchronize() -> None:
    """Wait for the device, which then says if it failed: what it failed to compute may be zeros
    (mlx #3979, #4134, #4174). Raises DeviceError as `_evaluate` does."""
    with _metal_errors():
        mx.synchronize()


@contextmanager
def _metal_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_device_failure(error):
            raise
        if not is_metal_failure(str(error)):
            raise DeviceError(
                f"The memory does not suffice: {error}. Keep less with --grad-checkpoint, make "
                "smaller micro-batches with --micro-batch-size, then continue with --resume."
            ) from error
        raise DeviceError(
            f"Metal ended the work: {error}. macOS stops long work while the display is on: let "
            "the display sleep, make smaller micro-batches with --micro-batch-size, keep "
            "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment (set unless you set another "
            "value), then continue with --resume."
        ) from error
