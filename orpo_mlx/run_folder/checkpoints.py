"""Checkpoints as folders: which a run has, which are whole, and what each says of itself.

What is in their tensors is for training/checkpoint.py. Imports no mlx.
"""

import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import remove, write_error
from orpo_mlx.run_folder.checksums import damage_of, has_checksums
from orpo_mlx.run_folder.folder import ASIDE, CHECKPOINTS, holds_run

STATE, MASTERS, MOMENTS = "state.json", "weights.safetensors", "optimizer.safetensors"
# In state.json; from 2 on a checkpoint has checksums.
FORMAT = 2
DAMAGED = "damaged-"
_NAME = re.compile(rf"(?:{DAMAGED})?step-(\d+)")


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or is to be."""
    return output / CHECKPOINTS / f"step-{step:07d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint by its name; raises ValueError for another name."""
    if (match := _NAME.fullmatch(folder.name)) is None:
        raise ValueError(f"{folder} is not a checkpoint")
    return int(match[1])


def checkpoints_of(output: Path) -> list[Path]:
    """The folders of a run's complete checkpoints, the oldest first."""
    return _numbered(output, "step-*")


def last_checkpoint(output: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run, if there is one."""
    folders = checkpoints_of(output)
    return folders[-1] if folders else None


def checkpoint_to_resume(output: Path, report: Callback) -> Path:
    """The newest checkpoint whose files are as they were written, which is from then on the last.

    Damaged ones after it are renamed and reported. Raises OrpoError if none is whole.
    """
    folder, damaged = _newest_whole(output)
    if folder is None:
        raise _none_whole(output, damaged)
    if not has_checksums(folder):
        report(Notice(f"{_short(folder)}, of an earlier version, has no checksums: not checked."))
    for other, problems in damaged.items():
        aside = _set_aside(other)
        text = (
            f"{_short(other)} is damaged ({'; '.join(problems)}): going on from {folder.name}. It "
            f"is now {aside.name}, and is removed once the run has come as far again."
        )
        report(Notice(text, warning=True))
    return folder


def prune_checkpoints(output: Path, keep: int | None, protected: Set[int]) -> None:
    """Remove the checkpoints before the newest `keep`, but those of `protected` steps; None keeps
    all. Damaged ones go once a later one is there.

    Raises OrpoError if one cannot be removed.
    """
    folders = checkpoints_of(output)
    old = folders[:-keep] if keep is not None else []
    last = step_of(folders[-1]) if folders else -1
    damaged = [folder for folder in _numbered(output, f"{DAMAGED}*") if step_of(folder) <= last]
    for folder in [*(f for f in old if step_of(f) not in protected), *damaged]:
        try:
            # Half removed, it must not look like a checkpoint: clear_strays knows this name.
            hidden = folder.with_name(f".{folder.name.removeprefix(DAMAGED)}.removed")
            remove(hidden)
            folder.rename(hidden)
            remove(hidden)
        except OSError as error:
            raise OrpoError(f"{folder} cannot be removed: {error.strerror}.") from error


def what_is_kept(output: Path) -> str:
    """What remains of a run that ends with an error."""
    folder = last_checkpoint(output)
    return f"The last checkpoint is kept: {folder}." if folder else "No checkpoint was due yet."


def pairs_of_checkpoint(output: Path) -> str | None:
    """The fingerprint of the pairs that a run trains on, if a checkpoint of it has one."""
    return _last_state(output).get("data")


def form_of_checkpoint(output: Path) -> str | None:
    """The form in which a run's recurrent layers run; None for mlx-lm's own."""
    return _last_state(output).get("recurrence")


def _newest_whole(output: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """A run's newest checkpoint that is not damaged, and what is wrong with those after it."""
    damaged: dict[Path, list[str]] = {}
    for folder in reversed(checkpoints_of(output)):
        if not (problems := problems_of(folder)):
            return folder, damaged
        damaged[folder] = problems
    return None, damaged


def _none_whole(output: Path, damaged: Mapping[Path, list[str]]) -> OrpoError:
    if not damaged:
        aside = output / ASIDE
        kept = f" The run that it was to replace is kept in {aside} until then."
        return OrpoError(
            f"--resume: {output} holds no checkpoint yet. Start it again with --overwrite."
            f"{kept if holds_run(aside) else ''}"
        )
    lines = [f"{folder.name}: {'; '.join(problems)}" for folder, problems in damaged.items()]
    why = collected(f"--resume: every checkpoint in {output / CHECKPOINTS} is damaged:", lines)
    return OrpoError(f"{why}\nRestore one from a backup, or start again with --overwrite.")


def _numbered(output: Path, pattern: str) -> list[Path]:
    folders = [p for p in (output / CHECKPOINTS).glob(pattern) if _NAME.fullmatch(p.name)]
    return sorted((folder for folder in folders if folder.is_dir()), key=step_of)


def problems_of(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, as far as that can be seen without its tensors."""
    if has_checksums(folder) or _state(folder).get("format") == FORMAT:
        return damage_of(folder)
    return []


def _short(folder: Path) -> str:
    """checkpoints/step-0000040."""
    return f"{folder.parent.name}/{folder.name}"


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not one any more."""
    aside = folder.with_name(DAMAGED + folder.name)
    try:
        remove(aside)
        folder.rename(aside)
    except OSError as error:
        raise write_error(aside, error) from error
    return aside


def _last_state(output: Path) -> dict[str, Any]:
    states = (_state(folder) for folder in reversed(checkpoints_of(output)))
    return next((state for state in states if state), {})


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
