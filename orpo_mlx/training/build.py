"""A run put together from its settings, before its first step."""

import math
import time
from collections.abc import Sequence

import mlx.nn as nn

from orpo_mlx import backend
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Listeners, Notice, PhaseTime
from orpo_mlx.model.base import Base
from orpo_mlx.model.recurrent.forms import Form, forms_of
from orpo_mlx.run_folder.checkpoints import form_of_checkpoint
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training.checkpoint import fingerprint
from orpo_mlx.training.checks.self_check import choose_path
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.run import Run
from orpo_mlx.training.step import TrainStep
from orpo_mlx.training.trainable import make_trainable


def build_run(
    config: TrainConfig,
    base: Base,
    train: Sequence[EncodedPair],
    valid: Sequence[EncodedPair],
    report: Listeners,
    *,
    rules: int = RULES,  # those that the run was begun under
) -> Run:
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
