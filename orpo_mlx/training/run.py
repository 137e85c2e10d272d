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
from orpo_mlx.data.tokens.pair_facts import count_rows
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Evaluated, Event, Listeners, Notice, PhaseTime, Saved
from orpo_mlx.model.base import Base, model_bytes
from orpo_mlx.model.lora import count_parameters
from orpo_mlx.model.recurrent.forms import SPAN, Form, forms_of
from orpo_mlx.model.recurrent.gated_delta import CHUNK
from orpo_mlx.run_folder.checkpoints import (
    form_of_checkpoint,
    last_checkpoint,
    prune_checkpoints,
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
from orpo_mlx.training.metrics.best import Best, best_of
from orpo_mlx.training.metrics.early_warning import EarlySettings, early_warning
from orpo_mlx.training.metrics.log import MetricsLog, sync_metrics
from orpo_mlx.training.not_finite import MOST_SKIPPED, end_error, held_out_error, skip_text
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.outputs import mean_metrics
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.samples.sampler import Sampler
from orpo_mlx.training.self_check import choose_path
from orpo_mlx.training.step import NotFiniteError, TrainStep, synchronize
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
        base.model,
        kind=config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        decay_all=rules < 4,
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
    saved: int = -1  # the step of the last checkpoint that this process wrote or read
    log: MetricsLog | None = None  # of what was done so far; it opens when the run starts
    sampler: Sampler | None = None

    def open_log(self) -> MetricsLog:
        """metrics.jsonl up to this step, to be gone on with."""
        if self.log is None:
            self.log = MetricsLog(
                self.config.output / METRICS, after_step=self.step, report=self.report
            )
        return self.log

    @property
    def best(self) -> Best | None:
        """The best validation so far; its checkpoint is kept."""
        return best_of(self.log.evaluations if self.log else (), self.config.best_metric)

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
        what = "row" if count_rows(self.train) else "pair"
        if batch > pairs:
            passes = self.steps * batch / pairs
            self.report(
                Notice(
                    f"A step takes {batch} {what}s, of which there {'is' if pairs == 1 else 'are'} "
                    f"{pairs}: each comes several times in a step, {passes:,.1f} times in the run.",
                    warning=True,
                )
            )
        if about := _ABOUT_FORMS.get(self.path.form):
            self.report(Notice(about))
        self.report(
            Notice(
                f"Micro-batches of {size} {what}{'s' * (size != 1)}; {share:.0%} of the computed "
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
        """One optimizer step; None if a stop was asked for in its middle (nothing has changed).

        A step that is not finite changes nothing either: its metrics are `skipped`, how many there
        are so far, and the learning rate; or it ends the run, a checkpoint saved.
        """
        try:
            metrics = self.train_step.take(self.step)
        except NotFiniteError as error:
            metrics = self._leave_out(error)
        self.step += metrics is not None
        return metrics

    def _leave_out(self, error: NotFiniteError) -> dict[str, float]:
        skipped, in_a_row = self.log.skipped() if self.log else (0, 0)
        if self.config.on_nan == "skip" and in_a_row + 1 < MOST_SKIPPED:
            counts = (skipped + 1, in_a_row + 1)
            text = skip_text(error, self.train_step, self.step, counts)
            self.report(Notice(text, warning=True))
            rate = self.train_step.learning_rate(self.step)
            return {"skipped": float(skipped + 1), "learning_rate": rate}
        if self.step and self.saved != self.step:
            self.save()
        trained = self.step > skipped
        raise end_error(error, self.train_step, self.step, trained=trained) from None

    def validation_due(self) -> bool:
        """Before the first step, after the last, and every `eval_every` steps."""
        every = self.config.eval_every
        return self.step in (0, self.steps) or bool(every and self.step % every == 0)

    def save_due(self) -> bool:
        """After the last step, every `save_every` steps, and at the best validation so far."""
        every = self.config.save_every
        if self.step == self.steps or (self.best and self.best.step == self.step):
            return True
        return bool(every and self.step and self.step % every == 0)

    def ends_early(self) -> bool:
        """Whether `early_stop` validations came after the best one."""
        limit = self.config.early_stop
        return bool(limit and self.best and self.best.since >= limit)

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
        if not np.isfinite(values["loss"]).all():
            raise held_out_error(self.path, self.valid, values["loss"], self.config, self.step)
        metrics = mean_metrics(values, "eval_")
        log.write(self.step, metrics)
        self.report(PhaseTime("validation", time.perf_counter() - started))
        self.report(Evaluated(self.step, metrics))
        return True

    def answer_samples(self) -> bool:
        """Answer the sample prompts, if there are some; False if a stop came before the end."""
        return self.sampler is None or self.sampler.answer(self.step, self.report)

    def report_disk_need(self) -> None:
        """What the rest of the run takes of the disk; raises OrpoError if that is not free."""
        often = [self.config.save_every, self.config.eval_every * bool(self.valid)]
        due = {self.steps}.union(*(range(0, self.steps, every) for every in often if every))
        need = DiskNeed(
            checkpoint_bytes(self._checkpoint(), self.optimizer.model_weights()),
            self.final_bytes(complete=True),
            max(sum(step > self.step for step in due), 1),
            self.config.keep_checkpoints,
            best=bool(self.valid),
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
        self.saved = self.step
        self.report(Saved(self.step, folder))
        best = {self.best.step} if self.best else set[int]()
        try:
            prune_checkpoints(output, self.config.keep_checkpoints, best)
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
        self.step = self.saved = checkpoint.step

    def warn_early(self, log: MetricsLog) -> None:
        """Warn, once, if the first steps show a run that learns nothing."""
        if self.step != min(EARLY_STEPS, self.steps):
            return
        settings = EarlySettings(
            learning_rate=self.config.peak_learning_rate,
            beta=self.config.beta,
            parameters=count_parameters(self.base.model)[0],
        )
        rows = log.steps(self.step)
        if rows and (text := early_warning(rows, settings)):
            self.report(Notice(text, warning=True))
