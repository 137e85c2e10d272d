"""Checkpoints as folders: which a run has, and what each says of itself. Imports no mlx.

What is in their tensors is for training/checkpoint.py.
"""

import json
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.run_folder.folder import CHECKPOINTS

STATE, MASTERS, MOMENTS = "state.json", "weights.safetensors", "optimizer.safetensors"


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or is to be."""
    return output / CHECKPOINTS / f"step-{step:07d}"


def last_checkpoint(output: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run, if there is one."""
    folders = sorted((output / CHECKPOINTS).glob("step-*"))
    return folders[-1] if folders else None


def checkpoint_to_resume(output: Path) -> Path:
    """`last_checkpoint`; raises OrpoError if there is none."""
    folder = last_checkpoint(output)
    if folder is None:
        raise OrpoError(
            f"--resume: {output} holds no checkpoint yet. Start it again with --overwrite."
        )
    return folder


def pairs_of_checkpoint(output: Path) -> str | None:
    """The fingerprint of the pairs that a run trains on, if a checkpoint of it has one."""
    return _last_state(output).get("data")


def form_of_checkpoint(output: Path) -> str | None:
    """The form in which a run's recurrent layers run; None for mlx-lm's own."""
    return _last_state(output).get("recurrence")


def _last_state(output: Path) -> dict[str, Any]:
    folder = last_checkpoint(output)
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
