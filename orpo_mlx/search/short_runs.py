"""Short runs from one start, in memory: what a few steps at a rate do to held-out pairs."""

import math
from typing import NamedTuple

import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Progress
from orpo_mlx.model.base import why_not_finite
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.run import Run
from orpo_mlx.training.step import NotFiniteError

MOST_STEPS, MOST_VALIDATIONS, MOST_PAIRS = 60, 12, 32


class Gain(NamedTuple):
    """By how much something rose over the held-out pairs: the mean, and its standard error."""

    mean: float
    error: float

    def beyond_chance(self) -> bool:
        """Above two standard errors: by chance alone in one case of forty."""
        return self.mean > 2 * self.error


class ShortRun(NamedTuple):
    """A run of a few steps; NaN where the numbers were not finite any more."""

    learning_rate: float  # 0: before any step
    steps: int
    train_loss: float  # of the last step, before its update
    held_out_loss: float
    accuracy: float
    log_odds: float  # of chosen over rejected
    fall: Gain  # of the held-out loss, from before any step
    rise: Gain  # of the log odds


class StoppedError(Exception):
    """A stop was asked for."""


class ShortRuns:
    """Trains from the same start again and again; counts its steps and validations."""

    def __init__(self, run: Run, beta: float, stage: str):
        self._run, self._stage, self._beta = run, stage, beta
        self.report, self.steps_of_run = run.report, run.steps
        self._start = run.optimizer.state()
        self._settings = run.config, run.steps
        self._warmup = share_of_warmup(run.config.warmup, run.steps)
        self.steps = self.validations = 0
        self._before = self._held_out()
        bad = np.flatnonzero(~np.isfinite(self._before["loss"]))
        if len(bad):
            locations = ", ".join(run.valid[int(i)].location for i in bad)
            raise OrpoError(
                f"The base gives NaN or infinite numbers for {locations}: "
                f"{why_not_finite(run.base.model)}."
            )
        self.before = self._measured(0.0, 0, math.nan, self._before)

    def measure(self, learning_rate: float, steps: int) -> ShortRun:
        """A whole run of so many steps at this peak, by the run's own schedule; then held-out
        pairs. The model is as before when it ends. Raises StoppedError."""
        try:
            loss = self._train(learning_rate, steps)
            values = self._held_out()
        except NotFiniteError:
            loss, values = math.nan, {name: v * math.nan for name, v in self._before.items()}
        finally:
            self._reset()
        return self._measured(learning_rate, steps, loss, values)

    def _train(self, learning_rate: float, steps: int) -> float:
        step = self._run.train_step
        step.config = self._run.config.model_copy(
            update={
                "learning_rate": learning_rate,
                "beta": self._beta,
                "warmup": float(round(self._warmup * steps)),
            }
        )
        step.steps = steps
        metrics: dict[str, float] | None = {}
        for number in range(steps):
            metrics = step.take(number)
            if metrics is None or self.report.stop:
                raise StoppedError
            self.steps += 1
            self.report(Progress(self._stage, self.steps, MOST_STEPS))
        assert metrics
        return metrics["loss"]

    def _reset(self) -> None:
        self._run.optimizer.restore(*self._start)
        self._run.train_step.config, self._run.train_step.steps = self._settings

    def _held_out(self) -> dict[str, np.ndarray]:
        self.validations += 1

        def report(event: Event) -> None:
            self.report(event)
            if self.report.stop:
                raise StoppedError

        return evaluate_encoded(
            self._run.path,
            self._run.valid,
            beta=self._beta,
            nll_on=self._run.config.nll_on,
            batch_size=self._run.plan.micro_batch_size,
            report=report,
            stage="Validating",
        )

    def _measured(
        self, learning_rate: float, steps: int, train_loss: float, values: dict[str, np.ndarray]
    ) -> ShortRun:
        return ShortRun(
            learning_rate,
            steps,
            train_loss,
            float(values["loss"].mean()),
            float(values["rewards/accuracies"].mean()),
            float(values["log_odds_chosen"].mean()),
            gain(self._before["loss"] - values["loss"]),
            gain(values["log_odds_chosen"] - self._before["log_odds_chosen"]),
        )


def gain(differences: np.ndarray) -> Gain:
    """The mean over pairs and its standard error."""
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return Gain(float(differences.mean()), float(error))


def share_of_warmup(warmup: float, steps: int) -> float:
    """Warm-up as a share of the run's steps, however it was given."""
    return warmup if warmup < 1 else min(warmup / steps, 1.0)
