"""`orpo-mlx sweep`: trials of train in processes of their own, chosen and compared by optuna.

Imports no mlx: what trains is a child.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orpo_mlx.config.sweep import SweepConfig, settings_of_trial
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.extras import import_extra
from orpo_mlx.files import remove, replacing
from orpo_mlx.run_folder.checkpoints import last_checkpoint
from orpo_mlx.run_folder.folder import CONFIG, METRICS
from orpo_mlx.run_folder.lock import check_free, locked
from orpo_mlx.run_folder.settings import adapter_step_of, effective_settings
from orpo_mlx.search.child import run_train, why_it_ended
from orpo_mlx.search.study import (
    EXTRA,
    JOURNAL,
    SweepTrial,
    draw_trial,
    keep_outcome,
    leave_open,
    open_study,
    save_plots,
    settled_trials,
)
from orpo_mlx.training.metrics.log import load_metrics
from orpo_mlx.yaml_files import load_yaml_settings

SETTINGS, PLOT_FOLDER = "sweep.yaml", "plots"
# So many first trials that end by one error are the sweep's own fault, not the draws'.
SAME_ENDS = 3
OWN_FILES = (SETTINGS, f"{JOURNAL}*", PLOT_FOLDER, "trial-*")
# Not a setting of the trials, or changed without making another sweep.
NOT_KEPT = ("output", "resume", "overwrite")
MAY_CHANGE = {"trials"}
Metrics = Mapping[str, float]


class Sweep(NamedTuple):
    """What a sweep came to; `beta` is that of the loss by which trials are compared."""

    output: Path
    trials: list[SweepTrial]
    best: SweepTrial | None
    beta: float
    plots: list[Path]
    stopped: bool


def sweep(config: SweepConfig, report: Callback = lambda event: None) -> Sweep:
    """Run the trials that are not over, until there are --trials, or until Ctrl-C.

    Raises OrpoError for settings that are not those of the sweep in --output, while another process
    uses it or the folder of a trial, and if no trial came to its end.
    """
    for module in ("optuna", "matplotlib"):
        import_extra(module, EXTRA)
    with locked(config.output, report):
        settings = _open_folder(config)
        stopped = not _run_trials(config, settings, report)
        study = open_study(config.output, config.seed, 0)
        trials = list(settled_trials(study).values())
        plots = save_plots(study, config.output / PLOT_FOLDER)
    complete = [trial for trial in trials if trial.loss is not None]
    if not (complete or stopped):
        why = [f"{_name(trial.number)}: {trial.why or trial.state}" for trial in trials]
        raise OrpoError(
            f"{collected('No trial came to its end:', why)}\nBegin again with --overwrite."
        )
    best = min(complete, key=lambda trial: trial.loss or 0.0, default=None)
    return Sweep(config.output, trials, best, config.beta, plots, stopped)


def options_of_trial(output: Path, number: int) -> list[str]:
    """The options of train with which a trial is made again; --output is for the caller."""
    return ["--config", str(output / f"{_name(number)}.yaml")]


def load_sweep_settings(output: Path) -> dict[str, Any]:
    """The settings of the sweep in a folder; raises OrpoError if there is none."""
    file = output / SETTINGS
    if not file.is_file():
        raise OrpoError(f"--resume: there is no sweep at {output}.")
    return load_yaml_settings(file)


def _open_folder(config: SweepConfig) -> dict[str, Any]:
    """The settings, as the folder keeps them; raises OrpoError if it holds anything else."""
    output, file = config.output, config.output / SETTINGS
    replaced = config.overwrite and file.exists()
    if replaced:
        for folder in output.glob("trial-*/"):
            check_free(folder)
        for own in [path for pattern in OWN_FILES for path in output.glob(pattern)]:
            remove(own)
    settings = effective_settings(config)
    settings = {name: value for name, value in settings.items() if name not in NOT_KEPT}
    if file.exists():
        _check_same(file, load_sweep_settings(output), settings)
    elif config.resume:
        raise OrpoError(f"--resume: there is no sweep at {output}.")
    elif not replaced and (others := _visible(output)):
        raise OrpoError(
            f"--output {output} holds other files ({', '.join(others[:3])}) and no sweep. "
            "Name another folder."
        )
    _save_yaml(file, settings)
    return settings


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _check_same(file: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))  # as a file keeps them
    names = sorted(n for n in {*was, *now} - MAY_CHANGE if was.get(n) != now.get(n))
    if names:
        changed = [f"{n}: was {was.get(n)}, now {now.get(n)}" for n in names]
        why = collected(f"{file.parent} holds a sweep with other settings:", changed)
        raise OrpoError(
            f"{why}\nGo on with its own, replace it with --overwrite, or name another folder."
        )


def _save_yaml(file: Path, values: Mapping[str, Any]) -> None:
    with replacing(file) as new:
        new.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")


def _run_trials(config: SweepConfig, settings: Mapping[str, Any], report: Callback) -> bool:
    """Every trial that is not over; False if Ctrl-C came before the last one's end."""
    study = open_study(config.output, config.seed, 0)
    leave_open(study)
    over = settled_trials(study)
    if over and (left := config.trials - len(over)) > 0:
        report(Notice(f"{len(over)} trials are over, {left} to go."))
    reasons = list[str]()
    for number in range(config.trials):
        if number in over:
            continue
        try:
            reasons.append(_run_trial(config, settings, number, report))
        except KeyboardInterrupt:
            return False
        if len(reasons) == SAME_ENDS and len(set(reasons)) == 1 and reasons[0]:
            raise OrpoError(
                f"Each of the first {SAME_ENDS} trials failed: {reasons[0].rstrip('.')}. What they "
                f"printed is in {config.output}. Begin again with --overwrite."
            )
    return True


def _run_trial(
    config: SweepConfig, settings: Mapping[str, Any], number: int, report: Callback
) -> str:
    """Draw a trial, train it in its folder, and keep how it ended; returns why it failed."""
    folder = config.output / _name(number)
    check_free(folder)  # a run goes on where its sweep was killed
    study = open_study(config.output, config.seed, number)
    trial = draw_trial(study, number, config.space)
    _save_yaml(folder.with_suffix(".yaml"), settings_of_trial(settings, trial.params))
    report(Notice(f"Trial {number + 1} of {config.trials}: {shown(trial.params)}"))
    beta = float(trial.params.get("beta", config.beta))

    def loss_of(row: Metrics) -> float:
        return compared_loss(row, beta, config.beta)

    watched = _Watched(folder / METRICS, trial, loss_of)
    log = folder.with_suffix(".log")
    status = run_train(_arguments(config, number), log, watched.is_hopeless)
    watched.report_new()
    rows = watched.validations()
    loss = loss_of(_row_of_adapter(folder, rows)) if status == 0 else None
    why = "" if status == 0 or watched.is_given_up else why_it_ended(status, log)
    keep_outcome(study, trial, loss, why)
    report(Notice(_ended(number, loss, why)))
    return why


def _arguments(config: SweepConfig, number: int) -> list[str]:
    """The arguments of train for a trial, which goes on where an earlier sweep left it."""
    folder = config.output / _name(number)
    more = ["--trust-remote-code"] if config.trust_remote_code else []
    if folder.exists():
        more.append("--resume" if last_checkpoint(folder) else "--overwrite")
    return [*options_of_trial(config.output, number), "--output", str(folder), *more]


class _Watched:
    """The validations of a trial under way, reported to optuna's pruner as they come."""

    def __init__(self, file: Path, trial: Any, loss_of: Callable[[Metrics], float]):
        self._file, self._trial, self._loss_of = file, trial, loss_of
        self._reported, self._size = 0, -1
        self._hopeless_since: int | None = None  # a step
        self.is_given_up = False

    def validations(self) -> list[Metrics]:
        """Those after the first step."""
        rows = load_metrics(self._file) if self._file.is_file() else []
        return [row for row in rows if "eval_loss" in row and row["step"] > 0]

    def report_new(self) -> None:
        """Report the validations that came since the last call.

        Raises OrpoError once a step was taken without one before it: there are no held-out pairs.
        """
        rows = self.validations()
        if _lacks_held_out(self._file):
            raise OrpoError(
                "The trials have no held-out loss to be compared by: give pairs with --valid-data, "
                "or hold some of --data out by a --valid-fraction above 0."
            )
        for row in rows[self._reported :]:
            self._trial.report(self._loss_of(row), int(row["step"]))
            if self._hopeless_since is None and self._trial.should_prune():
                self._hopeless_since = int(row["step"])
        self._reported = max(self._reported, len(rows))

    def is_hopeless(self) -> bool:
        """Whether the pruner gives the trial up and it trains on: after its last step it ends."""
        size = self._file.stat().st_size if self._file.is_file() else -1
        if size != self._size:
            self._size = size
            self.report_new()
            since = self._hopeless_since
            self.is_given_up = since is not None and _trains_on(self._file, since)
        return self.is_given_up


def _lacks_held_out(file: Path) -> bool:
    rows = load_metrics(file) if file.is_file() else []
    return any("loss" in row for row in rows) and not any("eval_loss" in row for row in rows)


def _trains_on(file: Path, step: int) -> bool:
    return any("loss" in row and row["step"] > step for row in load_metrics(file))


def _row_of_adapter(folder: Path, rows: Sequence[Metrics]) -> Metrics:
    """The validation of the step whose adapter a run kept; its last one where that is not noted."""
    kept = adapter_step_of(folder) if (folder / CONFIG).is_file() else None
    return next((row for row in reversed(rows) if row["step"] == kept), rows[-1])


def compared_loss(row: Metrics, beta: float, common: float) -> float:
    """The held-out loss of a validation, as if its beta were the one that all have in common."""
    if beta == common:
        return row["eval_loss"]
    return row["eval_nll_loss"] - common * row["eval_log_odds_ratio"]


def shown(drawn: Mapping[str, Any]) -> str:
    """Drawn values for people."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in drawn.items()
    )


def _ended(number: int, loss: float | None, why: str) -> str:
    if loss is not None:
        return f"{_name(number)}: held-out loss {loss:.4f}"
    return f"{_name(number)}: {f'failed: {why}' if why else 'pruned'}"


def _name(number: int) -> str:
    return f"trial-{number:03d}"
