"""What of run folders nothing needs any more, and removing it. Imports no mlx."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.files import remove, write_error
from orpo_mlx.leftovers import is_busy
from orpo_mlx.review.run_summary import facts_of_run
from orpo_mlx.review.runs.show import checkpoints_of_run
from orpo_mlx.review.runs.status import size_of
from orpo_mlx.run_folder.folder import CHECKPOINTS, RUN_FILES, TRUNK
from orpo_mlx.run_folder.lock import check_free, locked


class Removable(NamedTuple):
    """A file or folder that can go, and why."""

    path: Path
    size_bytes: int
    why: str


class CleanPlan(NamedTuple):
    """What can go, and a sentence for each run that is left alone."""

    removable: dict[Path, list[Removable]]  # by run folder; none of them empty
    notes: list[str]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for items in self.removable.values() for item in items)


def plan_clean(runs: Sequence[Path]) -> CleanPlan:
    """What can go of these runs; nothing of one that is in use, or damaged."""
    removable, notes = dict[Path, list[Removable]](), list[str]()
    for run in runs:
        try:
            check_free(run)
            items = removable_of(run)
        except OrpoError as error:
            notes.append(f"{run} is left alone: {error}")
            continue
        if items:
            removable[run] = items
    return CleanPlan(removable, notes)


def removable_of(run: Path) -> list[Removable]:
    """Checkpoints but the last and the best, the frozen prefix's states, and leftovers.

    Raises OrpoError for a run that cannot be read: what is its best is not known then.
    """
    facts = facts_of_run(run)
    checkpoints = checkpoints_of_run(run, facts.config, facts.rows)
    old = [one for one in checkpoints[:-1] if not one.best]
    items = [Removable(one.folder, one.size_bytes, "an earlier checkpoint") for one in old]
    if (trunk := run / TRUNK).is_dir():
        items.append(Removable(trunk, size_of(trunk), "a cache, which --resume fills again"))
    items += [Removable(p, size_of(p), "left by a killed run") for p in _leftovers(run)]
    return items


def clean(plan: CleanPlan, report: Callback, removed: Callable[[Removable], None]) -> None:
    """Remove what was planned and still can go, a run at a time, under its lock.

    Raises OrpoError for a run that is in use meanwhile, or for what cannot be removed.
    """
    for run, items in plan.removable.items():
        with locked(run, report):
            still = {item.path for item in removable_of(run)}
            for item in items:
                if item.path in still:
                    _remove(item.path)
                    removed(item)


def _remove(path: Path) -> None:
    """Remove a folder under another name: half removed it is not a checkpoint."""
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.removed")
    try:
        if hidden != path:
            remove(hidden)
            path.rename(hidden)
        remove(hidden)
    except OSError as error:
        raise write_error(path, error) from None


def _leftovers(run: Path) -> Iterator[Path]:
    """What killed runs left half-made; an earlier run that was put aside is not among it."""
    patterns = [f".{name}.*" for name in (*RUN_FILES, "tokenizer")] + [f"{CHECKPOINTS}/.step-*"]
    strays = {stray for pattern in patterns for stray in run.glob(pattern)}
    yield from sorted(stray for stray in strays if not is_busy(stray))
