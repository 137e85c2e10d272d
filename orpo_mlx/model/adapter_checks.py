"""What an adapter's config may contain, and whether the tensors in the file match it."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from orpo_mlx.model.safetensors import StoredTensor

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
KINDS = ("lora", "dora", "full")
FLOATS = ("F32", "F16", "BF16")
MAX_SCALE = 1e6


class AdapterSettings(NamedTuple):
    """The settings in an adapter's config."""

    kind: str  # one of KINDS
    rank: int  # 0 for full
    scale: float
    keys: list[str] | None  # None: every layer of the blocks that can be adapted
    num_layers: int  # the last N blocks; -1: all


def read_settings(
    config: dict[str, Any], names: Iterable[str]
) -> tuple[AdapterSettings, list[str]]:
    """The settings of an adapter's config, and what is wrong with them."""
    given: Any = config.get("lora_parameters")
    adapts = isinstance(given, dict) or any(leaf_of(name) in ADAPTER_LEAVES for name in names)
    # mlx-lm-lora writes no fine_tune_type: DoRA is one of its parameters, full training is nowhere.
    dora = isinstance(given, dict) and given.get("use_dora") is True
    kind = config.get("fine_tune_type", "full" if not adapts else "dora" if dora else "lora")
    layers: Any = config.get("num_layers", -1 if kind == "full" else None)
    problems = []
    if kind not in KINDS:
        problems.append(f"fine_tune_type is {_shown(kind)} (allowed: {', '.join(KINDS)})")
    if type(layers) is not int or not -1 <= layers < 2**31:
        problems.append(f"num_layers is {_shown(layers)} (allowed: a number of blocks, or -1)")
    if kind == "full" or problems:
        return AdapterSettings(str(kind), 0, 1.0, None, layers), problems
    if not isinstance(given, dict):
        return AdapterSettings(kind, 0, 1.0, None, layers), ["lora_parameters is not a JSON object"]
    if problems := _parameter_problems(given):
        return AdapterSettings(kind, 0, 1.0, None, layers), problems
    return AdapterSettings(kind, given["rank"], given["scale"], given.get("keys"), layers), []


def leaf_of(name: str) -> str:
    return name.rpartition(".")[2]


def _parameter_problems(given: dict[str, Any]) -> list[str]:
    rank, keys = given.get("rank"), given.get("keys")
    scale: Any = given.get("scale")
    dropout: Any = given.get("dropout", 0.0)
    problems = []
    if type(rank) is not int or not 1 <= rank < 2**31:
        problems.append(f"rank is {_shown(rank)} (allowed: 1 or more)")
    if not _number(scale) or abs(scale) > MAX_SCALE:
        hint = "; mlx-lm reads scale, not alpha" if "alpha" in given else ""
        problems.append(f"scale is {_shown(scale)} (allowed: up to {MAX_SCALE:,.0f}{hint})")
    if not _number(dropout) or not 0 <= dropout < 1:
        problems.append(f"dropout is {_shown(dropout)} (allowed: at least 0, less than 1)")
    names = keys if isinstance(keys, list) and keys else [None]
    if keys is not None and not all(isinstance(k, str) and k for k in names):
        problems.append(f"keys is {_shown(keys)} (allowed: a list of names)")
    return problems


def header_problems(header: dict[str, StoredTensor], settings: AdapterSettings) -> list[str]:
    """Where the tensors of a file do not match the settings."""
    if settings.kind == "full":
        return _full_problems(header)
    modules: dict[str, dict[str, StoredTensor]] = {}
    problems = []
    for name, tensor in header.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in ADAPTER_LEAVES or not module:
            problems.append(f"{name}: not one of {', '.join(ADAPTER_LEAVES)} of a module")
        elif tensor.dtype not in FLOATS:
            problems.append(f"{name}: its type is {tensor.dtype} (allowed: {', '.join(FLOATS)})")
        else:
            modules.setdefault(module, {})[leaf] = tensor
    for module, parts in modules.items():
        problems += [f"{module}: {why}" for why in _module_problems(parts, settings)]
    if not header:
        problems.append("it has no tensors")
    wanted = set(settings.keys or [])
    there = {ending for module in modules for ending in _endings(module) if ending in wanted}
    problems += [f"{key}: listed in keys, but it has no tensor" for key in sorted(wanted - there)]
    return problems


def _endings(path: str) -> Iterator[str]:
    """A dotted path, and what is left of it after each of its dots."""
    yield path
    while "." in path:
        path = path.partition(".")[2]
        yield path


def _module_problems(parts: dict[str, StoredTensor], settings: AdapterSettings) -> list[str]:
    """What is wrong with the shapes of one module.

    Linear: lora_a (D, rank), lora_b (rank, out). Embedding: (V, rank), (rank, D).
    Experts: (E, rank, D), (E, out, rank). m: one number for each row of the weight.
    """
    wanted = ADAPTER_LEAVES if settings.kind == "dora" else ADAPTER_LEAVES[:2]
    if set(parts) != set(wanted):
        return [f"has {', '.join(sorted(parts))} (a {settings.kind} has {', '.join(wanted)})"]
    a, b = parts["lora_a"].shape, parts["lora_b"].shape
    fits = len(a) == len(b) and (
        (len(a) == 2 and a[1] == b[0])
        or (len(a) == 3 and a[0] == b[0] and a[1] == b[2] and settings.kind == "lora")
    )
    if not fits or 0 in (*a, *b):
        return [f"lora_a {a} and lora_b {b} do not fit each other"]
    if a[1] != settings.rank:
        return [f"has rank {a[1]}, the config gives {settings.rank}"]
    if "m" in parts and parts["m"].shape not in ((b[1],), (a[0],)):
        return [f"m has shape {parts['m'].shape}, lora_a {a}, lora_b {b}"]
    return []


def _full_problems(header: dict[str, StoredTensor]) -> list[str]:
    """What cannot be the trained weights of a model."""
    problems = [] if header else ["it has no tensors"]
    for name, tensor in header.items():
        if leaf_of(name) in ADAPTER_LEAVES:
            problems.append(f"{name}: part of an adapter, not a weight of a model")
        elif tensor.dtype not in FLOATS:
            problems.append(f"{name}: its type is {tensor.dtype} (allowed: {', '.join(FLOATS)})")
        elif 0 in tensor.shape:
            problems.append(f"{name}: its shape is {tensor.shape}")
    return problems


def _number(value: Any) -> bool:
    return type(value) in (int, float) and (type(value) is int or math.isfinite(value))


def _shown(value: Any) -> str:
    return repr(value)[:60]
