"""One run: what it trains, a step, a validation, a checkpoint. When each comes is the loop's."""

import math
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from orpo_mlx import backend
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Evaluated, Event, Listeners, Notice, Saved, Timed
from orpo_mlx.model import lora
from orpo_mlx.model.base import Base, identity
from orpo_mlx.model.layer_hooks import first_trained
from orpo_mlx.run_folder import TRUNK
from orpo_mlx.training.checkpoint import (
    Checkpoint,
    fingerprint,
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.forward_path import BatchArrays, ForwardPath, arrays_of
from orpo_mlx.training.metrics_log import MetricsLog, early_rise
from orpo_mlx.training.optim import Optimizer, learning_rate_at
from orpo_mlx.training.outputs import pair_metrics, pair_outputs, summary
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.self_check import choose_path
from orpo_mlx.training.trainable import attach
from orpo_mlx.training.trunk_cache import Trunk, find_crossing, room_for, trunk_bytes, trunk_tokens

EARLY_STEPS = 20


class _StoppedError(Exception):
    """A stop was asked for during a validation."""


class Run:
    """The parts of one run; `step` counts the optimizer steps that are done."""

    def __init__(
        self,
        config: TrainConfig,
        base: Base,
        train: Sequence[EncodedPair],
        valid: Sequence[EncodedPair],
        tell: Listeners,
    ):
        self.config, self.base, self.train, self.valid = config, base, train, valid
        self.tell = tell
        self.compiled = not backend.is_cpu()
        started = time.perf_counter()
        self.plan = self._plan("padded" if config.plain else "tree")
        tell(Timed("order", time.perf_counter() - started))
        self.steps = config.steps or math.ceil(
            (config.epochs or 1) * len(train) / config.batch_size
        )
        self.data = fingerprint(train)
        self.adapter_config = attach(base, config, tell)
        self.optimizer = Optimizer(
            base.model, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm
        )
        started = time.perf_counter()
        self.path = self._choose_path()
        tell(Timed("self-check", time.perf_counter() - started))
        if self.path.layout != self.plan.layout:
            self.plan = self._plan(self.path.layout)
        self._half = any(v.dtype == mx.float16 for _, v in tree_flatten(base.model.parameters()))
        self.traces = 0  # runs of the step's Python body
        self.gradients = mx.compile(self.micro_step) if self.compiled else self.micro_step
        self.trunk: Trunk | None = None
        self.step = 0

    def tell_plan(self) -> None:
        """Say how pairs are computed; keep what is below the first trained block if that pays."""
        size, (share, positions) = self.plan.micro_batch_size, self.plan.sample()
        self.tell(
            Notice(
                f"Micro-batches of {size} pair{'s' * (size != 1)}; {share:.0%} of the computed "
                "positions are padding."
            )
        )
        # Kept states are computed pair by pair; without them the tree shares more, every epoch.
        if self.steps * self.config.batch_size * positions > trunk_tokens(self.train):
            self._keep_trunk()

    def _keep_trunk(self) -> None:
        """Keep it if nothing else crosses and the disk has room; told."""
        path, folder = self.path, self.config.output / TRUNK
        crossing = find_crossing(path)
        if crossing is None:
            return
        needed = trunk_bytes(crossing, self.train)
        size = f"{needed / 1e9:.1f} GB" if needed >= 1e9 else f"{needed / 1e6:.1f} MB"
        below = f"block {first_trained(path.model) + 1}, the first that is trained"
        if not room_for(needed, folder):
            self.tell(Notice(f"The disk has no room to keep the states below {below} ({size})."))
            return
        facts = {
            "data": self.data,
            "base": identity(self.base),
            "block": first_trained(path.model),
            "mlx": [metadata.version(name) for name in ("mlx", "mlx-lm")],
        }
        self.trunk = Trunk(path, self.train, folder, facts, crossing)
        self.tell(Notice(f"Later epochs start at {below}; kept for them: {size} in {folder}."))

    def do_step(self) -> dict[str, float] | None:
        """One optimizer step; None if a stop was asked for in its middle (nothing has changed)."""
        config = self.config
        started, tokens = time.perf_counter(), 0
        mx.reset_peak_memory()
        indices = self.plan.step(self.step)
        beta, weights = mx.array(config.beta), self.base.model.trainable_parameters()
        scale = mx.array(self._loss_scale(indices))
        total: Any = None
        parts: list[dict[str, mx.array]] = []
        for micro_step, micro_batch in enumerate(indices):
            if self.tell.stop:
                return None
            limit = self.plan.limit(micro_batch)
            batch = self.path.batch(self.train, micro_batch, config.nll_on, limit)
            states = self.trunk.states(batch) if self.trunk else None
            metrics, gradients = self.gradients(
                weights, arrays_of(batch, states), self._dropout_key(micro_step), beta, scale
            )
            # A trace leaves its placeholders in the model.
            self.base.model.update(weights)
            total = gradients if total is None else tree_map(mx.add, total, gradients)
            _evaluate(total, metrics)
            self._check_finite(metrics["loss"], batch.indices)
            parts.append(metrics)
            tokens += batch.tokens
        rate = self._learning_rate()
        norm = self.optimizer.update(total, rate)
        if not math.isfinite(norm):
            raise OrpoError(self._not_finite("gradient", np.concatenate(indices)))
        self.step += 1
        values = {n: np.concatenate([np.array(p[n]) for p in parts]) for n in parts[0]}
        return summary(values) | {
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": tokens / (time.perf_counter() - started),
            "peak_memory_gb": mx.get_peak_memory() / 1e9,
        }

    def validation_due(self) -> bool:
        """Before the first step, after the last, and every `eval_every` steps."""
        every = self.config.eval_every
        return self.step in (0, self.steps) or bool(every and self.step % every == 0)

    def save_due(self) -> bool:
        """After the last step, and every `save_every` steps."""
        every = self.config.save_every
        return self.step == self.steps or bool(every and self.step and self.step % every == 0)

    def validate(self, log: MetricsLog) -> bool:
        """Held-out metrics now, told and logged; False if a stop was asked for before the end."""

        def tell(event: Event) -> None:
            self.tell(event)
            if self.tell.stop:
                raise _StoppedError

        if not self.valid:
            return True
        if self.tell.stop:
            return False
        started = time.perf_counter()
        try:
            values = evaluate_encoded(
                self.path,
                self.valid,
                beta=self.config.beta,
                nll_on=self.config.nll_on,
                batch_size=self.plan.micro_batch_size,
                emit=tell,
                stage="Validating",
            )
        except _StoppedError:
            return False
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        if len(bad):
            places = ", ".join(self.valid[int(i)].place for i in bad)
            raise OrpoError(
                f"The held-out loss is not finite after step {self.step} (pairs: {places}). "
                f"{self._kept()}"
            )
        metrics = summary(values, "eval_")
        log.write(self.step, metrics)
        self.tell(Timed("validation", time.perf_counter() - started))
        self.tell(Evaluated(self.step, metrics))
        return True

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.trunk:
            self.trunk.flush()
        checkpoint = Checkpoint(self.step, *self.optimizer.state(), self.data)
        folder = save_checkpoint(
            self.config.output, checkpoint, self.optimizer.model_weights(), self.adapter_config
        )
        self.tell(Saved(self.step, folder))

    def restore(self) -> None:
        """Go back to the last checkpoint of the run folder; raises OrpoError if it does not fit."""
        folder = last_checkpoint(self.config.output)
        if folder is None:
            raise OrpoError(
                f"--resume: {self.config.output} holds no checkpoint yet. Start it again with "
                "--overwrite."
            )
        checkpoint = load_checkpoint(folder)
        if checkpoint.data != self.data:
            raise OrpoError(
                f"--resume: the training pairs are not those of {folder} (other data, tokenizer "
                "or template). Bring them back, or start a new run."
            )
        here = {n: v.shape for n, v in self.optimizer.state()[0].items()}
        there = {n: v.shape for n, v in checkpoint.weights.items()}
        if here != there:
            names = sorted(n for n in {*here, *there} if here.get(n) != there.get(n))
            raise collected(f"--resume: {self.config.model} is not the model of {folder}:", names)
        self.optimizer.restore(checkpoint.weights, checkpoint.moments)
        self.step = checkpoint.step

    def warn_if_rising(self, log: MetricsLog) -> None:
        """Say so if the loss goes up over the first steps: the usual sign of too high a rate."""
        count = min(EARLY_STEPS, self.steps)
        if self.step == count and (rise := early_rise(log.losses()[:count])):
            self.tell(
                Notice(
                    f"The loss rose from {rise[0]:.3f} to {rise[1]:.3f} over the first {count} "
                    f"steps. Try a lower --learning-rate (now {self.config.peak_learning_rate:g}).",
                    warning=True,
                )
            )

    def micro_step(
        self, weights: Any, batch: BatchArrays, key: mx.array, beta: mx.array, scale: mx.array
    ) -> tuple[dict[str, mx.array], Any]:
        """Metrics of each pair and the float32 gradient; `scale` keeps it from float16's zero."""
        self.traces += 1
        model = self.base.model

        def loss_of(weights: Any) -> tuple[mx.array, dict[str, mx.array]]:
            model.update(weights)
            lora.reset_dropout(model, key)
            outputs = pair_outputs(self.path, batch, beta=beta)
            # A plain mean over the step's pairs, however they are cut into micro-batches.
            loss = scale * outputs.losses.loss.sum() / self.config.batch_size
            return loss, pair_metrics(*outputs, beta)

        with self.path.differentiated():
            (_, metrics), gradients = mx.value_and_grad(loss_of)(weights)
        return metrics, tree_map(lambda g: g.astype(mx.float32) / scale, gradients)

    def _plan(self, layout: str) -> Plan:
        return Plan(self.train, self.config, rounded=self.compiled, layout=layout)

    def _choose_path(self) -> ForwardPath:
        config = self.config
        return choose_path(
            self.base,
            self.train,
            self.tell,
            adapter=self.adapter_config,
            plain=config.plain,
            checkpoint=config.grad_checkpoint,
            rounding=self.plan.rounding,
        )

    def _loss_scale(self, indices: list[np.ndarray]) -> float:
        """1, or for a float16 base a power of 2 that makes a token's gradient about 1."""
        if not self._half:
            return 1.0
        tokens = [len(self.train[int(i)].chosen) for part in indices for i in part]
        return float(2 ** round(math.log2(max(sum(tokens), 1))))

    def _dropout_key(self, micro_step: int) -> mx.array:
        """The masks follow from seed, step and micro-step alone."""
        sequence = np.random.SeedSequence([self.config.seed, self.step, micro_step])
        return mx.random.key(sequence.generate_state(1, np.uint64).item())

    def _learning_rate(self) -> float:
        config = self.config
        return learning_rate_at(
            self.step,
            peak=config.peak_learning_rate,
            steps=self.steps,
            warmup=config.warmup,
            schedule=config.schedule,
        )

    def _check_finite(self, losses: mx.array, indices: np.ndarray) -> None:
        finite = np.isfinite(np.array(losses))
        if not finite.all():
            raise OrpoError(self._not_finite("loss", indices[~finite]))

    def _not_finite(self, what: str, indices: np.ndarray) -> str:
        places = ", ".join(self.train[int(i)].place for i in indices)
        return (
            f"The {what} is not finite at step {self.step + 1} (pairs: {places}). "
            f"Lower --learning-rate, or look at these pairs. {self._kept()}"
        )

    def _kept(self) -> str:
        folder = last_checkpoint(self.config.output)
        return f"The last checkpoint is kept: {folder}." if folder else "No checkpoint was due yet."


def _evaluate(*arrays: Any) -> None:
    """Compute; raises OrpoError with what helps where macOS kills the work of a GPU."""
    try:
        mx.eval(*arrays)
    except RuntimeError as error:
        if "kIOGPU" not in str(error) and "METAL" not in str(error):
            raise
        raise OrpoError(
            f"The GPU gave up: {error}. macOS stops long work while the display is on: let the "
            "display sleep, make smaller micro-batches with --micro-batch-size, keep "
            "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment (set unless you set another "
            "value), then go on with --resume."
        ) from error
