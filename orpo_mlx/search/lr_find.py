"""A range test: the learning rate whose short runs lower the loss of held-out pairs most.

First runs of a few steps, a factor of 8 apart, then of some more steps, a factor of 2 apart, each
uphill from the best so far. What is best for so few steps is too high for many: it is scaled by
the number of steps to the power -0.32 (Bjorck et al. 2024, arXiv 2409.19913, for pretraining).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orpo_mlx.config.search import LrFindConfig
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Listeners, Notice, Progress
from orpo_mlx.files import temporary_folder
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.search.short_runs import (
    MOST_PAIRS,
    MOST_STEPS,
    ShortRun,
    ShortRuns,
    StoppedError,
)
from orpo_mlx.training import loop
from orpo_mlx.training.run import Run
from orpo_mlx.training.trainable import settings_of_adapter

HORIZON = 0.32
FEWEST_PAIRS = 8
UNMOVED = 1e-3  # a part of the loss: a change that is smaller than it comes from too low a rate


class Ladder(NamedTuple):
    """Rates a factor apart: at most so many runs, of so many steps each."""

    factor: float
    runs: int
    steps: int


# Together 58 steps and, with that of the start, 12 validations.
COARSE, FINE = Ladder(8.0, 6, 3), Ladder(2.0, 5, 8)


class Search(NamedTuple):
    """What a search measured, in its order, and the rate that it suggests, with one reason."""

    beta: float
    before: ShortRun
    runs: list[ShortRun]
    best: ShortRun | None  # of the runs
    suggestion: float | None
    reason: str
    stopped: bool
    steps: int  # that were taken
    validations: int


def lr_find(config: LrFindConfig, callbacks: Sequence[Callback] = ()) -> list[Search]:
    """Search for the rate of the run that the settings describe; `with_sft`, at beta 0 too.

    Nothing is written but token ids in their cache. A callback may raise StopRun: what was measured
    so far is returned. Raises OrpoError for whatever the user can fix.
    """
    report = Listeners(callbacks)
    with loop.one_training(), temporary_folder(report) as folder:
        settings = config.train_config(folder / "run")
        if settings.adapter:
            settings = settings_of_adapter(settings)
        settings = settings.model_copy(update={"eval_pairs": MOST_PAIRS})
        run, _, _ = loop.prepare_run(settings, RULES, report)
        if len(run.valid) < FEWEST_PAIRS:
            raise too_few(len(run.valid), settings)
        betas = dict.fromkeys([config.beta, 0.0] if config.with_sft else [config.beta])
        searches: list[Search] = []
        with loop.stopped_by_signals(report):
            for beta in betas:
                if not report.stop:
                    searches += search(run, beta)
        return searches


def too_few(pairs: int, config: TrainConfig) -> OrpoError:
    """The error for held-out pairs that show nothing."""
    if config.valid_data:
        what = "Give more of them with --valid-data."
    elif not config.data:
        what = "SFT rows are never held out: give pairs with --valid-data."
    else:
        what = (
            f"Hold out more than --valid-fraction {config.valid_fraction:g} of the pairs, or give "
            "some with --valid-data."
        )
    return OrpoError(
        f"Held-out pairs: {pairs}; lr-find judges each rate by them and needs at least "
        f"{FEWEST_PAIRS}, better {MOST_PAIRS}. {what}"
    )


def search(run: Run, beta: float) -> list[Search]:
    """One search, also one that was stopped on its way; none that was before it measured a rate."""
    stage = f"Trying learning rates at --beta {beta:g}"
    measured: list[ShortRun] = []
    try:
        short = ShortRuns(run, beta, stage)
    except StoppedError:
        return []
    stopped = False
    try:
        coarse = climb(short, COARSE, run.config.peak_learning_rate, measured)
        if coarse.fall.mean > 0:
            climb(short, FINE, coarse.learning_rate, measured)
    except StoppedError:
        stopped = True
    run.report(Progress(stage, MOST_STEPS, MOST_STEPS))
    return [conclude(run, beta, short, measured, stopped=stopped)] if measured else []


def climb(
    short: ShortRuns, ladder: Ladder, start: float, measured: list[ShortRun]
) -> ShortRun:  # the best
    """Measure rates from `start` on, each a factor from one that was, towards lower losses."""
    steps = min(ladder.steps, short.steps_of_run)
    runs: dict[int, ShortRun] = {}
    rung: int | None = 0
    while rung is not None and len(runs) < ladder.runs:
        runs[rung] = short.measure(start * ladder.factor**rung, steps)
        measured.append(runs[rung])
        short.report(Notice(line_of(runs[rung])))
        rung = next_rung(runs)
    return max(runs.values(), key=worth)


def next_rung(runs: Mapping[int, ShortRun]) -> int | None:
    """The next rung to measure: above the best, then below it; None if both are known."""
    best = max(runs, key=lambda rung: worth(runs[rung]))
    fall, loss = runs[best].fall.mean, runs[best].held_out_loss
    if not fall > 0:  # no rate so far is any good: they are too high, unless they move nothing
        above = abs(fall) < UNMOVED * loss
        rung = best + 1 if above else min(runs) - 1
        return None if rung in runs else rung
    return next((rung for rung in (best + 1, best - 1) if rung not in runs), None)


def worth(run: ShortRun) -> float:
    """How much the held-out loss fell; nothing is worse than numbers that are not finite."""
    return run.fall.mean if math.isfinite(run.fall.mean) else -math.inf


def line_of(run: ShortRun) -> str:
    """A run in one line."""
    return (
        f"{run.learning_rate:.1e} for {run.steps} steps: held-out loss {run.held_out_loss:.3f}, "
        f"accuracy {run.accuracy:.2f}"
    )


def conclude(
    run: Run, beta: float, short: ShortRuns, measured: list[ShortRun], *, stopped: bool
) -> Search:
    """What the measured runs show."""
    longest = max(m.steps for m in measured)
    best = max((m for m in measured if m.steps == longest), key=worth)
    learned = best.fall.beyond_chance()
    # The likelihood alone, or SFT rows alone, are not to prefer anything.
    preferred = beta == 0 or not run.config.data or best.rise.beyond_chance()
    rate = None
    if stopped:
        reason = "Stopped before the search was over: no rate is suggested."
    elif not learned:
        reason = nothing_lowers(short.before, best)
    elif not preferred:
        reason = nothing_prefers(short.before, best)
    else:
        rate = float(f"{best.learning_rate * (longest / run.steps) ** HORIZON:.2g}")
        reason = why(short.before, best, rate, run.steps)
    return Search(
        beta=beta,
        before=short.before,
        runs=measured,
        best=best if rate else None,
        suggestion=rate,
        reason=reason,
        steps=short.steps,
        validations=short.validations,
        stopped=stopped,
    )


def why(before: ShortRun, best: ShortRun, rate: float, steps: int) -> str:
    """Why a rate is suggested."""
    scaled = ""
    if steps > best.steps:
        ratio = f"({best.steps}/{steps:,})^{HORIZON}"
        scaled = f", and the {steps:,} steps of the run take a lower one, by {ratio}"
    return (
        f"Of the runs of {best.steps} steps the one at {best.learning_rate:.2g} lowered the "
        f"held-out loss most, {fall_of(before, best)}{scaled}: {rate:.2g}, a short-run optimum."
    )


def fall_of(before: ShortRun, run: ShortRun) -> str:
    """From what to what a run moved held-out loss and accuracy."""
    return (
        f"from {before.held_out_loss:.3f} to {run.held_out_loss:.3f} (accuracy "
        f"{before.accuracy:.2f} to {run.accuracy:.2f})"
    )


def nothing_lowers(before: ShortRun, best: ShortRun) -> str:
    """Why no rate is suggested: the loss does not fall."""
    return (
        f"No rate helps: the held-out loss, {before.held_out_loss:.3f} at the start, fell by "
        f"{best.fall.mean:.3f} at best, at {best.learning_rate:.2g}, which is no more than chance "
        f"(standard error {best.fall.error:.3f})."
    )


def nothing_prefers(before: ShortRun, best: ShortRun) -> str:
    """Why no rate is suggested: the model learns the answers, not which one is preferred."""
    return (
        f"No rate helps to prefer the chosen answers: at {best.learning_rate:.2g} the held-out "
        f"loss fell most, {fall_of(before, best)}, but the log odds of chosen over rejected moved "
        f"by {best.rise.mean:+.3f} (standard error {best.rise.error:.3f}), no more than chance. "
        "Labels at random look like this: see orpo-mlx data check. A weak preference may take more "
        "steps, or more held-out pairs, to show itself."
    )
