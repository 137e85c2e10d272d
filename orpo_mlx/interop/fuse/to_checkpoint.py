"""A plain folder in mlx-lm's layout made one that transformers loads, where the two differ."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import remove
from orpo_mlx.interop.checkpoint.folder import plain_checkpoint
from orpo_mlx.interop.checkpoint.origins import Origin, trace_parameters
from orpo_mlx.interop.checkpoint.shards import save_arrays
from orpo_mlx.interop.checkpoint.transformers_rules import check_plain_names
from orpo_mlx.model.base import load_weights
from orpo_mlx.model.safetensors import read_tensors


def as_checkpoint(folder: Path, trust_remote_code: bool, report: Callback) -> None:
    """Give the tensors of a folder the names and shapes of a checkpoint; other files stay.

    Where that is impossible, it reports why and leaves the folder in mlx-lm's layout.
    """
    model, config, _ = load_weights(
        folder, "the fused model", trust_remote_code=trust_remote_code, lazy=True,
        flag="After writing,",
    )  # fmt: skip
    try:
        if _is_checkpoint(config):
            return
        plain = plain_checkpoint(model, config, read_tensors(folder), None, report)
    except OrpoError as error:
        why = " ".join(str(error).split())
        report(
            Notice(f"The folder stays in mlx-lm's layout, which transformers does not load: {why}")
        )
        return
    del model
    made = folder.with_name(".checkpoint")
    made.mkdir()
    save_arrays(made, plain.tensors, layout="pt", report=report)
    for file in [*folder.glob("model*.safetensors"), *folder.glob("*.index.json")]:
        remove(file)
    for file in made.iterdir():
        file.rename(folder / file.name)
    made.rmdir()
    mx.clear_cache()
    text = json.dumps(plain.config, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    check_plain_names(folder)


def _is_checkpoint(config: dict[str, Any]) -> bool:
    """Whether a checkpoint has every parameter as the model has it."""
    origins, computed = trace_parameters(config, None)
    return not computed and all(o == Origin((n,), None, False) for n, o in origins.items())
