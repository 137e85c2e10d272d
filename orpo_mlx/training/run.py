"""One run: its parts, a step, a validation, a checkpoint. The loop decides when each comes."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.nn as nn
import numpy as np

from orpo_mlx import backend
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Evaluated, Event, Listeners, Notice, PhaseTime, Saved
from orpo_mlx.model.base import Base, model_bytes, why_not_finite
from orpo_mlx.model.lora import count_parameters
from orpo_mlx.model.recurrent.forms import SPAN, Form, forms_of
from orpo_mlx.model.recurrent.gated_delta import CHUNK
from orpo_mlx.run_folder.checkpoints import (
    form_of_checkpoint,
    last_checkpoint,
    prune_checkpoints,
    what_is_kept,
)
from orpo_mlx.run_folder.folder import METRICS, TRUNK
from orpo_mlx.run_folder.room import DiskNeed, has_room, report_disk_need, require_room
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training.checkpoint import (
    Checkpoint,
    checkpoint_bytes,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.forward_path import ForwardPath
from orpo_mlx.training.metrics.early_warning import EarlySettings, early_warning
from orpo_mlx.training.metrics.log import MetricsLog, sync_metrics
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.outputs import mean_metrics
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.self_check import choose_path
from orpo_mlx.training.step import TrainStep, synchronize
from orpo_mlx.training.trainable import make_trainable
from orpo_mlx.training.trunk_cache import open_trunk_cache, trunk_tokens

EARLY_STEPS = 20
_ABOUT_FORMS = {
    "chunked": f"Gated delta layers are computed in chunks of {CHUNK} tokens.",
    "fused": "Gated delta layers are computed by MLX's kernel.",
    "spans": "Recurrent layers are computed token by token, as mlx-lm has them; their states are "
    f"computed again for the gradient, {SPAN} tokens at a time.",
}


class _StoppedError(Exception):
    """A stop was asked for during a validation."""


def build_run(
    config: TrainConfig,
    base: Base,
    train: Sequence[EncodedPair],
    valid: Sequence[EncodedPair],
    report: Listeners,
    *,
    rules: int = RULES,  # those that the run was begun under
) -> "Run":
    """The run that the settings describe, before its first step; the base gets its adapter."""
    compiled = not backend.is_cpu()

    def plan_for(layout: str) -> Plan:
        return Plan(train, config, rounded=compiled, layout=layout, rules=rules)

    started = time.perf_counter()
    plan = plan_for("padded" if config.plain else "tree")
    report(PhaseTime("order", time.perf_counter() - started))
    steps = config.steps or math.ceil((config.epochs or 1) * len(train) / config.batch_size)
    data = fingerprint(train)
    adapter_config = make_trainable(base, config, report)
    optimizer = Optimizer(
        base.model, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm
    )
    started = time.perf_counter()
    path = choose_path(
        base,
        train,
        report,
        adapter=adapter_config,
        plain=config.plain,
        checkpoint=config.grad_checkpoint,
        rounding=plan.rounding,
        forms=forms_of_run(base.model, config),
    )
    report(PhaseTime("self-check", time.perf_counter() - started))
    own = form_of_checkpoint(config.output) if config.resume else None
    if own not in (None, path.form):
        report(
            Notice(
                f"The run computed its recurrent layers in another form ({own}), which is not used "
                f"here: from now on {path.form}. Its numbers are the same up to rounding.",
                warning=True,
            )
        )
    if path.layout != plan.layout:
        plan = plan_for(path.layout)
    train_step = TrainStep(
        config, train, plan, path, optimizer, report, steps=steps, compiled=compiled
    )
    return Run(
        config, base, train, valid, report, plan, path, adapter_config, optimizer, train_step, data
    )


def forms_of_run(model: nn.Module, config: TrainConfig) -> list[Form]:
    """The forms to try for recurrent layers: a resumed run's own, where the machine has it."""
    forms = forms_of(model)
    if not config.resume:
        return forms
    own = form_of_checkpoint(config.output)
    # Version 0.1 had mlx-lm's loop alone.
    if own is None and forms == ["spans"]:
        return ["loop"]
    return [own] if own in forms else forms


@dataclass
class Run:
    """The parts of one run; `step` counts the optimizer steps that are done."""

    config: TrainConfig
    base: Base
    train: Sequence[EncodedPair]
    valid: Sequence[EncodedPair]
    report: Listeners
    plan: Plan
    path: ForwardPath
    adapter_config: dict[str, Any]  # mlx-lm's
    optimizer: Optimizer
    train_step: TrainStep
    data: str  # fingerprint of the training pairs
    step: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train_step.steps

    @cached_property
    def _sample(self) -> tuple[float, float]:
        """Of the first micro-batches: the share of padding, and the positions of a pair."""
        return self.plan.sample()

    def report_plan(self) -> None:
        """How many pairs are computed together, and where they are fewer than a step takes."""
        size, (share, _) = self.plan.micro_batch_size, self._sample
        batch, pairs = self.config.batch_size, len(self.train)
        if batch > pairs:
            passes = self.steps * batch / pairs
            self.report(
                Notice(
                    f"A step takes {batch} pairs, of which there {'is' if pairs == 1 else 'are'} "
                    f"{pairs}: each comes several times in a step, {passes:,.1f} times in the run.",
                    warning=True,
                )
            )
        if about := _ABOUT_FORMS.get(self.path.form):
            self.report(Notice(about))
        self.report(
            Notice(
                f"Micro-batches of {size} pair{'s' * (size != 1)}; {share:.0%} of the computed "
                "positions are padding."
            )
        )

    def open_trunk_cache(self) -> None:
        """Keep the states below the first trained block from now on, if that saves work."""
        _, positions = self._sample
        # Kept states are computed pair by pair; without them the tree shares more, every epoch.
        if self.steps * self.config.batch_size * positions > trunk_tokens(self.train):
            self.train_step.trunk_cache = open_trunk_cache(
                self.path, self.base, self.train, self.data, self.config.output / TRUNK, self.report
            )

    def do_step(self) -> dict[str, float] | None:
        """One optimizer step; None if a stop was asked for in its middle (nothing has changed)."""
        metrics = self.train_step.take(self.step)
        self.step += metrics is not None
        return metrics

    def validation_due(self) -> bool:
        """Before the first step, after the last, and every `eval_every` steps."""
        every = self.config.eval_every
        return self.step in (0, self.steps) or bool(every and self.step % every == 0)

    def save_due(self) -> bool:
        """After the last step, and every `save_every` steps."""
        every = self.config.save_every
        return self.step == self.steps or bool(every and self.step and self.step % every == 0)

    def validate(self, log: MetricsLog) -> bool:
        """Held-out metrics now, reported and logged; False if a stop came before the end."""

        def report(event: Event) -> None:
            self.report(event)
            if self.report.stop:
                raise _StoppedError

        if not self.valid:
            return True
        if self.report.stop:
            return False
        started = time.perf_counter()
        try:
            values = evaluate_encoded(
                self.path,
                self.valid,
                beta=self.config.beta,
                nll_on=self.config.nll_on,
                batch_size=self.plan.micro_batch_size,
                report=report,
                stage="Validating",
            )
        except _StoppedError:
            return False
        synchronize()
        bad = np.flatnonzero(~np.isfinite(values["loss"]))
        if len(bad):
            locations = ", ".join(self.valid[int(i)].location for i in bad)
            if self.step == 0:
                raise OrpoError(
                    f"The base gives NaN or infinite numbers for {locations}: "
                    f"{why_not_finite(self.base.model)}."
                )
            raise OrpoError(
                f"The held-out loss is not finite after step {self.step} (pairs: {locations}). "
                f"{what_is_kept(self.config.output)}"
            )
        metrics = mean_metrics(values, "eval_")
        log.write(self.step, metrics)
        self.report(PhaseTime("validation", time.perf_counter() - started))
        self.report(Evaluated(self.step, metrics))
        return True

    def report_disk_need(self) -> None:
        """What the rest of the run takes of the disk; raises OrpoError if that is not free."""
        every = self.config.save_every or self.steps
        need = DiskNeed(
            checkpoint_bytes(self._checkpoint(), self.optimizer.model_weights()),
            self.final_bytes(complete=True),
            max(math.ceil(self.steps / every) - self.step // every, 1),
            self.config.keep_checkpoints,
        )
        report_disk_need(self.config.output, need, self.report)

    def final_bytes(self, *, complete: bool) -> int:
        """What the end of the run writes: the adapter, after a full fine-tune the model too."""
        adapter = sum(value.nbytes for value in self.optimizer.model_weights().values())
        full = complete and self.config.fine_tune_type == "full"
        return adapter + (model_bytes(self.base) if full else 0)

    def save(self) -> None:
        """Write a checkpoint of this step, then remove those that are not kept."""
        synchronize()
        output, checkpoint = self.config.output, self._checkpoint()
        weights = self.optimizer.model_weights()
        size = checkpoint_bytes(checkpoint, weights)
        if cache := self.train_step.trunk_cache:
            cache.flush()
            if not has_room(output, size):
                cache.discard("The disk has no room for a checkpoint.")
        sync_metrics(output / METRICS)
        require_room(output, f"the checkpoint of step {self.step}", size)
        folder = save_checkpoint(output, checkpoint, weights, self.adapter_config)
        self.report(Saved(self.step, folder))
        try:
            prune_checkpoints(output, self.config.keep_checkpoints, set())
        except OrpoError as error:
            self.report(Notice(str(error), warning=True))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.step, *self.optimizer.state(), self.data, self.path.form)

    def restore(self) -> None:
        """Go back to the last checkpoint of the run folder; raises OrpoError if it does not fit."""
        folder = last_checkpoint(self.config.output)
        assert folder  # checkpoint_to_resume has seen to it
        checkpoint = load_checkpoint(folder)
        if checkpoint.data != self.data:
            raise OrpoError(
                f"--resume: the training pairs are not those of {folder} (other data, tokenizer "
                "or template, or rows that this version of orpo-mlx reads otherwise): restore "
                "them, or begin again with --overwrite."
            )
        here = {n: v.shape for n, v in self.optimizer.state()[0].items()}
        there = {n: v.shape for n, v in checkpoint.weights.items()}
        if here != there:
            names = sorted(n for n in {*here, *there} if here.get(n) != there.get(n))
            raise collected(f"--resume: {self.config.model} is not the model of {folder}:", names)
        self.optimizer.restore(checkpoint.weights, checkpoint.moments)
        self.step = checkpoint.step

    def warn_early(self, log: MetricsLog) -> None:
        """Warn, once, if the first steps show a run that learns nothing."""
        if self.step != min(EARLY_STEPS, self.steps):
            return
        settings = EarlySettings(
            learning_rate=self.config.peak_learning_rate,
            beta=self.config.beta,
            parameters=count_parameters(self.base.model)[0],
        )
        if text := early_warning(log.steps(self.step), settings):
            self.report(Notice(text, warning=True))
