"""What transformers would load of a written folder: names and ties, by its rules, without torch.

mlx-lm's loader does not show it: it drops a head that the config calls tied, and knows other names.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import load_json_object
from orpo_mlx.interop.checkpoint.module_map import module_name, text_prefix
from orpo_mlx.interop.checkpoint.origins import trace_parameters
from orpo_mlx.model.safetensors import Shards, find_shards
from orpo_mlx.model.stored.heads import TIE, has_equal_head, has_head, head_tensors, stored_tie


def check_as_transformers(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise OrpoError, with all that is wrong, if transformers would compute another model.

    `names` are the tensors that a checkpoint of this model has; None: they are not compared.
    """
    shards = find_shards(folder)
    config = load_json_object(folder / "config.json")
    if config.get("model_file"):
        return
    problems = [] if names is None else _name_problems(shards, names)
    problems += _tie_problems(shards, config)
    problems += [f"{name}: not part of the model" for name in shards.strays]
    if problems:
        raise collected("transformers would load another model from the written folder:", problems)


def check_plain_names(folder: Path) -> None:
    """Raise OrpoError if a plain folder lacks a module of transformers' model, or has another."""
    config = load_json_object(folder / "config.json")
    try:
        origins, computed = trace_parameters(config, None)
    except OrpoError:
        return  # its names cannot be followed
    if computed:
        return
    kind = str(config["model_type"])
    wanted = _their_names((name for origin in origins.values() for name in origin.names), kind)
    there = _their_names(find_shards(folder).files, kind)
    if problems := _differences(there, wanted):
        raise collected("transformers would load another model from the written folder:", problems)


def _their_names(names: Iterable[str], kind: str) -> set[str]:
    """What transformers' own loading makes of tensors' names; a head may be tied."""
    prefix, names = text_prefix(kind), set(names)
    return {module_name(name, kind, prefix) for name in names - {*head_tensors(names)}}


def _name_problems(shards: Shards, names: Collection[str]) -> list[str]:
    return _differences({*shards.files}, {*names})


def _differences(there: set[str], wanted: set[str]) -> list[str]:
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    return [
        *(f"{name}: not there, so it would begin at random" for name in missing),
        *(f"{name}: a name that it does not look for" for name in extra),
    ]


def _tie_problems(shards: Shards, config: Mapping[str, Any]) -> list[str]:
    """Where it ties head and embedding and mlx-lm does not, or the other way round."""
    heads, tied = head_tensors(shards.files), stored_tie(config)
    if tied is False and not heads:
        return [f"no head is stored and {TIE} is not true: the head would begin at random"]
    if tied and heads and not has_equal_head(shards) and not has_head(config):
        return [f"{heads[0]} differs from the embedding although {TIE} is true"]
    return []
