"""Checkpoints: everything from which a run continues bit for bit. Complete or not written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import is_weighted
from orpo_mlx.data.tokens.store import StoredPairs
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import replacing
from orpo_mlx.model.adapters import save_adapter, save_tensors
from orpo_mlx.model.recurrent.forms import Form
from orpo_mlx.run_folder.checkpoints import FORMAT, MASTERS, MOMENTS, STATE, checkpoint_folder
from orpo_mlx.run_folder.checksums import save_checksums

# Bytes of a tensor's entry in a safetensors header, besides its name.
ENTRY = 90


class Checkpoint(NamedTuple):
    """A run after `step` optimizer steps. Random keys and the data's position follow from it."""

    step: int
    weights: dict[str, mx.array]  # float32
    moments: dict[str, mx.array]
    data: str  # fingerprint of the pairs that it trained on
    form: Form  # of recurrent layers


def save_checkpoint(
    output: Path,
    checkpoint: Checkpoint,
    model_weights: dict[str, mx.array],
    adapter_config: dict[str, Any],
) -> Path:
    """Write `checkpoints/step-NNNNNNN`, itself an adapter folder; return it."""
    target = checkpoint_folder(output, checkpoint.step)
    with replacing(target) as folder:
        folder.mkdir()
        save_adapter(folder, model_weights, adapter_config)
        save_tensors(folder / MASTERS, checkpoint.weights)
        save_tensors(folder / MOMENTS, checkpoint.moments)
        state = {"format": FORMAT, "step": checkpoint.step, "data": checkpoint.data}
        if checkpoint.form != "loop":
            state["recurrence"] = checkpoint.form
        (folder / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        save_checksums(folder)
    return target


def checkpoint_bytes(checkpoint: Checkpoint, model_weights: Mapping[str, mx.array]) -> int:
    """About what `save_checkpoint` writes: tensors with their names, types and shapes."""
    parts = (checkpoint.weights, checkpoint.moments, model_weights)
    return sum(v.nbytes + len(n) + ENTRY for part in parts for n, v in part.items())


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; raises OrpoError naming the folder if it is damaged."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        weights: Any = mx.load(str(folder / MASTERS))
        moments: Any = mx.load(str(folder / MOMENTS))
        mx.eval(weights, moments)
        form = state.get("recurrence", "loop")
        return Checkpoint(state["step"], weights, moments, state["data"], form)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise OrpoError(
            f"{folder} is damaged ({error}). Remove it to continue from the checkpoint before it."
        ) from None


def fingerprint(pairs: Sequence[EncodedPair]) -> str:
    """A digest of the token ids in their order, and of the weights where there are any."""
    if isinstance(pairs, StoredPairs):
        return pairs.digest
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in (pair.prompt, pair.chosen, pair.rejected):
            digest.update(len(ids).to_bytes(8, "little"))
            digest.update(ids.tobytes())
    if is_weighted(pairs):
        digest.update(np.array([pair.weight for pair in pairs], np.float32).tobytes())
    return digest.hexdigest()
