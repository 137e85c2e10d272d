"""A sweep's study: what optuna draws, keeps in its journal, prunes and plots. Imports no mlx."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.config.sweep import Choices, NumberRange
from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra

EXTRA, NAME, JOURNAL = "sweep", "sweep", "study.journal"
# Trials that come to their end before one is pruned.
STARTUP_TRIALS = 5
PLOTS = {
    "history": "plot_optimization_history",
    "slice": "plot_slice",
    "intermediate": "plot_intermediate_values",
}
_NUMBER, _WHY = "number", "why"  # attributes of a trial in the journal


class SweepTrial(NamedTuple):
    """A trial that is over; `loss` of a complete one is what trials are compared by."""

    number: int
    state: str  # complete, pruned or failed
    loss: float | None
    drawn: dict[str, Any]
    why: str  # of a failed one


def open_study(folder: Path, seed: int, number: int) -> Any:
    """The study in a folder, whose next draw follows from the seed and a trial's number alone.

    Raises OrpoError if its journal is damaged.
    """
    optuna = import_extra("optuna", EXTRA)
    journals = import_extra("optuna.storages.journal", EXTRA)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    state = np.random.SeedSequence([seed, number]).generate_state(1)
    try:
        backend = journals.JournalFileBackend(str(folder / JOURNAL))
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=NAME,
            sampler=optuna.samplers.RandomSampler(seed=int(state[0])),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise OrpoError(
            f"{folder / JOURNAL} is damaged ({type(error).__name__}: {error}). Begin the sweep "
            "again with --overwrite."
        ) from None


def draw_trial(study: Any, number: int, space: Mapping[str, NumberRange | Choices]) -> Any:
    """optuna's next trial, with the values that it drew as `params`."""
    trial = study.ask({name: _distribution(values) for name, values in space.items()})
    trial.set_user_attr(_NUMBER, number)
    return trial


def _distribution(values: NumberRange | Choices) -> Any:
    distributions = import_extra("optuna.distributions", EXTRA)
    if isinstance(values, Choices):
        return distributions.CategoricalDistribution(values.values)
    if values.whole:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)


def keep_outcome(study: Any, trial: Any, loss: float | None, why: str) -> None:
    """Keep how a trial ended: with a loss, failed and why, or pruned."""
    states = import_extra("optuna.trial", EXTRA).TrialState
    if loss is not None:
        study.tell(trial, loss)
    elif why:
        trial.set_user_attr(_WHY, why)
        study.tell(trial, state=states.FAIL)
    else:
        study.tell(trial, state=states.PRUNED)


def leave_open(study: Any) -> None:
    """Close what optuna takes for running, so that trials of a sweep that ended come again."""
    states = import_extra("optuna.trial", EXTRA).TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)


def settled_trials(study: Any) -> dict[int, SweepTrial]:
    """The trials that are over, by number; those that a stop cut short are not."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    over = {}
    for trial in study.get_trials(deepcopy=False):
        state, why = names.get(trial.state.name), trial.user_attrs.get(_WHY, "")
        if state is None or (state == "failed" and not why) or _NUMBER not in trial.user_attrs:
            continue
        number, loss = trial.user_attrs[_NUMBER], trial.value if state == "complete" else None
        over[number] = SweepTrial(number, state, loss, dict(trial.params), why)
    return dict(sorted(over.items()))


def save_plots(study: Any, folder: Path) -> list[Path]:
    """optuna's plots of a study as PNG files; none before a trial is complete."""
    if not any(trial.loss is not None for trial in settled_trials(study).values()):
        return []
    import_extra("matplotlib", EXTRA).use("Agg")
    pyplot = import_extra("matplotlib.pyplot", EXTRA)
    drawing = import_extra("optuna.visualization.matplotlib", EXTRA)
    folder.mkdir(exist_ok=True)
    files = []
    for name, function in PLOTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are experimental, and draw spans of one value
            axes = np.ravel(getattr(drawing, function)(study))
        files.append(folder / f"{name}.png")
        axes[0].figure.savefig(files[-1], dpi=144, bbox_inches="tight")
        pyplot.close(axes[0].figure)
    return files
