"""What a run folder is, read from its files alone: which run, how far, in which state, how large.

Imports no mlx. Nothing here raises for a folder that is damaged: that is what it then says.
"""

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.public_names import public_name
from orpo_mlx.review.run_summary import facts_of_run
from orpo_mlx.run_folder.checkpoints import last_checkpoint
from orpo_mlx.run_folder.folder import CONFIG, METRICS, holds_run
from orpo_mlx.run_folder.lock import is_held
from orpo_mlx.run_folder.state import load_state

ACCURACY = "rewards/accuracies"
DATA = ("data", "sft_data")  # settings that name what is trained on


class RunStatus(NamedTuple):
    """One run; what is not known is "" or None."""

    folder: Path
    base: str
    data: list[str]
    state: str  # running, done, stopped, failed, interrupted; or damaged
    reason: str  # of a stop, a failure, an interruption; what is damaged
    step: int
    steps: int | None  # None: not known
    loss: float | None
    accuracy: float | None
    held_out: bool  # whether these two are
    size_bytes: int
    updated: str  # ISO 8601, to the second


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Run folders among these and in them, and a sentence for each folder that holds no run.

    Raises OrpoError if one of `folders` cannot be read.
    """
    runs, notes = list[Path](), list[str]()
    for folder in folders:
        if is_run(folder):
            runs.append(folder)
            continue
        for inner in _folders_in(folder):
            if is_run(inner):
                runs.append(inner)
            else:
                notes.append(f"{inner} holds no run.")
    return runs, notes


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or one that has just begun."""
    try:
        return holds_run(folder) or bool(folder.is_dir() and is_held(folder))
    except OSError:
        return False


def _folders_in(folder: Path) -> list[Path]:
    try:
        inner = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except FileNotFoundError:
        raise OrpoError(f"{folder}: no such folder (from {Path.cwd()}).") from None
    except NotADirectoryError:
        raise OrpoError(f"{folder} is a file. Name a run folder, or one that holds some.") from None
    except OSError as error:
        raise OrpoError(f"{folder} cannot be read: {error.strerror}.") from None
    return sorted(inner)


def status_of(folder: Path) -> RunStatus:
    """The status of a run folder, however damaged."""
    size, updated = size_of(folder), _updated(folder)
    try:
        facts = facts_of_run(folder)
    except OrpoError as error:
        return RunStatus(
            folder, "", [], "damaged", str(error), 0, None, None, None, False, size, updated
        )
    config, rows = facts.config, facts.rows
    recorded = load_state(folder)
    step = max((int(row["step"]) for row in rows), default=recorded.step if recorded else 0)
    steps = recorded.steps if recorded else config.get("steps")
    steps = steps if isinstance(steps, int) else None
    state, reason = _state(folder, steps)
    loss, held_out = last_value(rows, "loss")
    base = config.get("model") or facts.adapter.get("model") or ""
    return RunStatus(
        folder,
        str(public_name(str(base))),
        [str(public_name(source)) for key in DATA for source in _texts(config.get(key))],
        state,
        reason,
        step,
        steps,
        loss,
        last_value(rows, ACCURACY)[0],
        held_out,
        size,
        updated,
    )


def last_value(rows: Sequence[dict[str, float]], name: str) -> tuple[float | None, bool]:
    """The last held-out value of a metric, else the last of training; whether it is held out."""
    for key in (f"eval_{name}", name):
        if values := [row[key] for row in rows if key in row]:
            return values[-1], key != name
    return None, False


def _state(folder: Path, steps: int | None) -> tuple[str, str]:
    """The state of a run, and its reason; of one that has no state.json, what its files show."""
    if state := load_state(folder):
        return state.state, state.reason
    if is_held(folder):
        return "running", ""  # it has just begun
    last = last_checkpoint(folder)
    done = last is not None and steps is not None and last.name == f"step-{steps:07d}"
    return ("done" if done else ""), ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_file() and not path.is_symlink():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
            except OSError:  # removed meanwhile: a run is going on there
                continue
    return total


def _updated(folder: Path) -> str:
    times = []
    for name in (METRICS, CONFIG, ""):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    if not times:
        return ""
    return dt.datetime.fromtimestamp(times[0]).astimezone().isoformat(timespec="seconds")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values if item is not None]
