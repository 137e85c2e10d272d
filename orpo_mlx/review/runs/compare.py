"""Several runs next to each other. Imports no mlx."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.review.curves import draw_comparison
from orpo_mlx.review.run_summary import SHOWN_METRICS, RunFacts, facts_of_run
from orpo_mlx.review.runs.settings import differing_settings
from orpo_mlx.review.runs.show import check_run
from orpo_mlx.review.runs.status import last_value


class RunsComparison(NamedTuple):
    """Runs, and what each has, in their order."""

    runs: list[Path]
    settings: dict[str, list[Any]]  # those that differ
    steps: list[int]  # that were done
    held_out: dict[str, list[float | None]]  # the last, by metric
    training: dict[str, list[float | None]]


def compare_runs(folders: Sequence[Path]) -> RunsComparison:
    """Compare runs; raises OrpoError for a folder that holds none."""
    facts = [_facts(folder) for folder in folders]
    names = (*SHOWN_METRICS, "nll_loss/sft")
    last = {name: [_values(run, name) for run in facts] for name in names}
    return RunsComparison(
        list(folders),
        differing_settings([run.config for run in facts]),
        [max((int(row["step"]) for row in run.rows), default=0) for run in facts],
        {name: [held_out for held_out, _ in values] for name, values in last.items()},
        {name: [training for _, training in values] for name, values in last.items()},
    )


def comparison_curves(folders: Sequence[Path]) -> bytes:
    """A PNG of the curves of all; raises OrpoError if none has two steps."""
    names = names_of_runs(folders)
    image = draw_comparison({n: _facts(f).rows for n, f in zip(names, folders, strict=True)})
    if image is None:
        raise OrpoError("No curves to draw: none of these runs has two steps.")
    return image


def names_of_runs(folders: Sequence[Path]) -> list[str]:
    """What runs are called next to each other: the last part of their paths, if that differs."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _facts(folder: Path) -> RunFacts:
    check_run(folder)
    return facts_of_run(folder)


def _values(run: RunFacts, name: str) -> tuple[float | None, float | None]:
    """The last held-out and the last training value of a metric."""
    value, held_out = last_value(run.rows, name)
    trained = [row[name] for row in run.rows if name in row]
    return value if held_out else None, trained[-1] if trained else None
