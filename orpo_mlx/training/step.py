"""One optimizer step: the gradient of its pairs, a micro-batch at a time, and the update.

The loop and the run decide when steps come and what is written between them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import is_weighted
from orpo_mlx.errors import DeviceError
from orpo_mlx.events import Listeners, MicroBatchDone
from orpo_mlx.model import lora
from orpo_mlx.supervisor.device_errors import (
    is_device_failure,
    is_metal_failure,
    is_out_of_memory,
)
from orpo_mlx.training.forward_path import BatchArrays, ForwardPath, arrays_of
from orpo_mlx.training.optim import Optimizer, learning_rate_at
from orpo_mlx.training.outputs import pair_metrics, pair_outputs, step_metrics
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.trunk_cache import TrunkCache


class NotFiniteError(Exception):
    """A step whose loss or gradient is not finite; nothing has been updated."""

    def __init__(
        self,
        what: Literal["loss", "gradient"],
        indices: np.ndarray,  # of the pairs
        gradients: Any = None,  # the step's, where it is they that are not finite
    ):
        super().__init__(what)
        self.what, self.indices, self.gradients = what, indices, gradients


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
        self._weighted = is_weighted(pairs)
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

        None if a stop was asked for in its middle: nothing has changed then. Nor has anything when
        it raises NotFiniteError.
        """
        config = self.config
        started, tokens = time.perf_counter(), 0
        mx.reset_peak_memory()
        indices = self.plan.step(step)
        beta, weights = mx.array(config.beta), self.model.trainable_parameters()
        scale = mx.array(loss_scale(self.pairs, indices, half=self._half))
        total: Any = None
        parts: list[dict[str, mx.array]] = []
        paired: list[np.ndarray] = []
        for number, micro_batch in enumerate(indices):
            if self.listeners.stop:
                return None
            limit = self.plan.limit(micro_batch)
            batch = self.path.batch(self.pairs, micro_batch, config.nll_on, limit)
            states = self.trunk_cache.states(batch) if self.trunk_cache else None
            metrics, gradients = self.gradients(
                weights,
                arrays_of(batch, states),
                self._dropout_key(step, number),
                beta,
                scale,
                self._pair_weights(micro_batch),
            )
            # Tracing leaves its placeholders in the model.
            self.model.update(weights)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            _evaluate(total, metrics)
            _check_finite(metrics["loss"], batch.indices)
            parts.append(metrics)
            paired.append(np.ones(len(micro_batch), bool) if batch.paired is None else batch.paired)
            tokens += batch.tokens
            self.listeners(MicroBatchDone(step + 1, number + 1, len(indices)))
        synchronize()
        rate = self.learning_rate(step)
        norm = self.optimizer.update(total, rate)
        if not math.isfinite(norm):
            raise NotFiniteError("gradient", np.concatenate(indices), total)
        values = {n: np.concatenate([np.array(p[n]) for p in parts]) for n in parts[0]}
        return step_metrics(values, np.concatenate(paired)) | {
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / (time.perf_counter() - started),
            "peak_memory_gb": mx.get_peak_memory() / 1e9,
        }

    def micro_step(
        self,
        weights: Any,
        batch: BatchArrays,
        key: mx.array,
        beta: mx.array,
        scale: mx.array,
        pair_weights: mx.array | None = None,  # (B,); None: 1 each
    ) -> tuple[dict[str, mx.array], Any]:
        """Metrics of each pair and the float32 gradient; `scale` avoids underflow in float16."""
        self.traces += 1

        def loss_of(weights: Any) -> tuple[mx.array, dict[str, mx.array]]:
            self.model.update(weights)
            lora.reset_dropout(self.model, key)
            outputs = pair_outputs(self.path, batch, beta=beta)
            losses = outputs.losses.loss
            if pair_weights is not None:
                losses = pair_weights * losses
            # A plain mean over the step's pairs, however they are cut into micro-batches.
            loss = scale * losses.sum() / self.config.batch_size
            return loss, pair_metrics(*outputs, beta) | {"loss": losses}

        with self.path.differentiated():
            (_, metrics), gradients = mx.value_and_grad(loss_of)(weights)
        return metrics, tree_map(lambda g: g.astype(mx.float32) / scale, gradients)

    def pair_gradient(self, index: int, step: int) -> Any:
        """The gradient of one pair alone, scaled as in optimizer step `step`."""
        weights = self.model.trainable_parameters()
        arrays = arrays_of(self.path.batch(self.pairs, [index], self.config.nll_on))
        scale = mx.array(loss_scale(self.pairs, self.plan.step(step), half=self._half))
        key, beta = self._dropout_key(step, 0), mx.array(self.config.beta)
        pair_weights = self._pair_weights(np.array([index]))
        _, gradients = self.micro_step(weights, arrays, key, beta, scale, pair_weights)
        self.model.update(weights)
        _evaluate(gradients)
        return gradients

    def _pair_weights(self, micro_batch: np.ndarray) -> mx.array | None:
        """(B,) how often the loss of each pair counts; None where the data have no weights."""
        if not self._weighted:
            return None
        return mx.array([self.pairs[int(i)].weight for i in micro_batch], dtype=mx.float32)

    def _dropout_key(self, step: int, micro_step: int) -> mx.array:
        """The masks follow from seed, step and micro-step alone."""
        sequence = np.random.SeedSequence([self.config.seed, step, micro_step])
        return mx.random.key(sequence.generate_state(1, np.uint64).item())

    def learning_rate(self, step: int) -> float:
        """That of optimizer step `step`, from 0."""
        config = self.config
        return learning_rate_at(
            step,
            peak=config.peak_learning_rate,
            steps=self.steps,
            warmup=config.warmup,
            schedule=config.schedule,
        )


def _check_finite(
    losses: mx.array,  # (B,)
    indices: np.ndarray,  # (B,) of the pairs
) -> None:
    """Raise NotFiniteError for the pairs whose loss is not finite."""
    finite = np.isfinite(np.array(losses))
    if not finite.all():
        synchronize()  # what a failed device computed is not the pairs' fault
        raise NotFiniteError("loss", indices[~finite])


def loss_scale(pairs: Sequence[EncodedPair], indices: Sequence[np.ndarray], *, half: bool) -> float:
    """1, or for a float16 base a power of 2 that makes a token's gradient about 1."""
    if not half:
        return 1.0
    rows = [pairs[int(i)] for part in indices for i in part]
    largest = max([1.0, *(row.weight for row in rows)])
    tokens = sum(len(row.chosen) for row in rows)
    return float(2 ** round(math.log2(max(tokens, 1) / largest)))


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
        if is_out_of_memory(str(error)) or not is_metal_failure(str(error)):
            raise DeviceError(
                f"There is not enough memory: {error}. Keep less with --grad-checkpoint, make "
                "smaller micro-batches with --micro-batch-size, then continue with --resume."
            ) from error
        raise DeviceError(
            f"Metal ended the work: {error}. macOS stops long work while the display is on: let "
            "the display sleep, make smaller micro-batches with --micro-batch-size, keep "
            "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment (set unless you set another "
            "value), then continue with --resume."
        ) from error
