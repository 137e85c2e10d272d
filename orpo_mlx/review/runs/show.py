"""One run whole: its settings, state, metrics, checkpoints, files and answers. Imports no mlx."""

from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.review.curves import draw_curves
from orpo_mlx.review.run_summary import facts_of_run
from orpo_mlx.review.runs.settings import changed_settings
from orpo_mlx.review.runs.status import RunStatus, find_runs, is_run, size_of, status_of
from orpo_mlx.run_folder.folder import CHECKPOINTS, SAMPLES
from orpo_mlx.training.metrics.best import best_of
from orpo_mlx.training.samples.log import load_samples

BEST_METRIC = "eval_loss"  # where config.yaml names no other


class CheckpointFacts(NamedTuple):
    """A checkpoint: whether the run's best validation was at its step."""

    step: int
    folder: Path
    size_bytes: int
    best: bool


class RunView(NamedTuple):
    """What `runs show` shows."""

    status: RunStatus
    settings: dict[str, Any]  # those that differ from the defaults
    start: dict[str, float]  # the first held-out metrics
    held_out: dict[str, float]  # the last ones
    training: dict[str, float]  # the last metrics of training
    checkpoints: list[CheckpointFacts]
    adapter_step: int | None  # whose weights the adapter has, where that is known
    answers: list[dict[str, Any]]  # of the last validation, to the sample prompts
    files: dict[str, int]  # in bytes; of folders all that is in them

    def as_dict(self) -> dict[str, Any]:
        return self._asdict() | {
            "status": self.status._asdict(),
            "checkpoints": [checkpoint._asdict() for checkpoint in self.checkpoints],
        }


def check_run(folder: Path) -> None:
    """Raise OrpoError unless a folder holds a run, with those in it if there are some."""
    if is_run(folder):
        return
    inside, _ = find_runs([folder])
    hint = f" Runs in it: {', '.join(map(str, inside[:5]))}." if inside else ""
    raise OrpoError(f"{folder} holds no run.{hint}")


def view_of(folder: Path) -> RunView:
    """A run; raises OrpoError if there is none, or its files are damaged."""
    check_run(folder)
    facts = facts_of_run(folder)
    rows = facts.rows
    evaluated = [row for row in rows if any(name.startswith("eval_") for name in row)]
    trained = [row for row in rows if "loss" in row]
    step = facts.config.get("adapter_step")
    return RunView(
        status_of(folder),
        changed_settings(facts.config),
        evaluated[0] if evaluated else {},
        evaluated[-1] if evaluated else {},
        trained[-1] if trained else {},
        checkpoints_of_run(folder, facts.config, rows),
        step if isinstance(step, int) else None,
        _last_answers(folder),
        {path.name: size_of(path) for path in sorted(folder.iterdir()) if path.name[0] != "."},
    )


def checkpoints_of_run(
    folder: Path, config: dict[str, Any], rows: list[dict[str, float]]
) -> list[CheckpointFacts]:
    """The complete checkpoints of a run, the oldest first."""
    best = best_of(rows, str(config.get("best_metric", BEST_METRIC)))
    numbered = [(p.name.partition("-")[2], p) for p in (folder / CHECKPOINTS).glob("step-*")]
    return [
        CheckpointFacts(int(n), path, size_of(path), best is not None and int(n) == best.step)
        for n, path in sorted(numbered)
        if n.isdecimal()
    ]


def curves_of(folder: Path) -> bytes:
    """A PNG of a run's curves; raises OrpoError if it has fewer than two steps."""
    image = draw_curves(facts_of_run(folder).rows)
    if image is None:
        raise OrpoError(f"{folder}: no curves to draw: it has fewer than two steps.")
    return image


def _last_answers(folder: Path) -> list[dict[str, Any]]:
    answers = load_samples(folder / SAMPLES)
    last = max((row.step for row in answers), default=0)
    return [row._asdict() for row in answers if row.step == last]
