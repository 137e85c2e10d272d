"""The tensors of a PEFT adapter's file, and the module of the model that each belongs to."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import mlx.core as mx

from orpo_mlx.errors import collected
from orpo_mlx.interop.checkpoint.module_map import ModuleMap, PeftModule
from orpo_mlx.interop.peft.config import MAX_RANK, PeftSettings
from orpo_mlx.interop.peft.exporter import HEAD
from orpo_mlx.interop.peft.tensors import PREFIX, Factors, is_zero, split_experts, stacked_experts

LEAVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "m",
    "lora_magnitude_vector.weight": "m",
}
COPY = re.compile(r"(.+?)(\.base_layer|\.original_module)?\.weight")
INNER = ".base_layer"
# How far a copy of a weight may be from it, relative: rounded to bfloat16, or quantized to 4 bits.
ROUNDED, QUANTIZED = 5e-3, 0.2
BaseWeight = Callable[[str], tuple[mx.array, bool]]  # by path; whether it is quantized


class ModuleAdapter(NamedTuple):
    """A module's adapter, and the factor of its product."""

    factors: Factors
    scale: float


class Wrapper(NamedTuple):
    """The tensors of one of PEFT's wrappers."""

    path: str  # as the file has it
    parts: dict[str, mx.array]  # a (r, in), b (out, r), m


def find_factors(
    tensors: Mapping[str, mx.array],
    settings: PeftSettings,
    module_map: ModuleMap,
    base_weight: BaseWeight,
    name: str,
) -> tuple[dict[str, ModuleAdapter], list[str]]:
    """The adapter of every module by its MLX path, and sentences for the user.

    Raises OrpoError, with all of it, for tensors that belong to no module, do not fit it, or need
    what mlx-lm does not support.
    """
    wrappers, copies, problems = _classify(tensors)
    index = _index(module_map)
    adapters: dict[str, ModuleAdapter] = {}
    head = wrappers.pop(HEAD, None) if HEAD not in index and module_map.tied else None
    for path in list(wrappers):
        if path.endswith(INNER):
            continue
        results = _of_wrapper(path, wrappers, index, settings)
        for result in results:
            if isinstance(result, str):
                problems.append(result)
            else:
                adapters[result[0]] = result[1]
    problems += [
        f"{w.path}: no wrapper of experts around it"
        for p, w in wrappers.items()
        if p.endswith(INNER) and p.removesuffix(INNER) not in wrappers
    ]
    problems += _tied_problems(adapters, head, module_map)
    notices = []
    for path, value in copies.items():
        left_out, why = _judge_copy(path, value, index, base_weight)
        notices += left_out
        problems += why
    if not adapters and not problems:
        problems.append("it adapts nothing")
    if problems:
        raise collected(f"{name} cannot be imported:", problems)
    return adapters, notices


def canonical(path: str) -> str:
    """A module's path without what classes for text and for images differ in."""
    return re.sub(
        r"^(model\.language_model|language_model\.model|model|language_model)\.", "", path
    )


def _classify(
    tensors: Mapping[str, mx.array],
) -> tuple[dict[str, Wrapper], dict[str, mx.array], list[str]]:
    """Wrappers by canonical path, full weights by theirs, and names that are neither."""
    wrappers: dict[str, Wrapper] = {}
    copies: dict[str, mx.array] = {}
    problems = []
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        leaf = next((leaf for leaf in LEAVES if name.endswith(f".{leaf}")), None)
        if leaf:
            path = name.removesuffix(f".{leaf}")
            stored = wrappers.setdefault(canonical(path), Wrapper(path, {}))
            stored.parts[LEAVES[leaf]] = value
        elif match := COPY.fullmatch(name):
            copies[match[1]] = value
        else:
            problems.append(f"{key}: not a tensor of a LoRA adapter")
    return wrappers, copies, problems


Index = dict[str, list[tuple[str, PeftModule]]]


def _index(module_map: ModuleMap) -> Index:
    """Our modules by the canonical path of transformers' module."""
    index: Index = {}
    for path, peft_module in module_map.modules.items():
        index.setdefault(canonical(peft_module.path), []).append((path, peft_module))
    return index


def _of_wrapper(
    path: str, wrappers: Mapping[str, Wrapper], index: Index, settings: PeftSettings
) -> Iterator[tuple[str, ModuleAdapter] | str]:
    """The adapters that one of PEFT's wrappers is, or what is wrong with it."""
    stored = wrappers[path]
    ours = index.get(path)
    if not ours:
        yield _unknown(stored.path)
        return
    if not ours[0][1].experts:
        yield _plain(ours[0], stored, settings)
        return
    inner = wrappers.get(path + INNER)
    parameter = "down_proj" if inner else _only_parameter(stored.path, ours, settings)
    for wrapper, name in ((stored, parameter), (inner, "gate_up_proj")):
        if wrapper is not None:
            parts = sorted(
                ((p, peft_module) for p, peft_module in ours if peft_module.parameter == name),
                key=lambda part: part[1].rows or (0, 0, 0),
            )
            yield from _experts(parts, wrapper, f"{stored.path}.{name}", settings)


def _unknown(path: str) -> str:
    if re.search(r"\.experts\.\d+\.", path):
        return (
            f"{path}: tensors of one expert, from before transformers 5: load the adapter in PEFT "
            "0.19 or newer, and save it again with save_pretrained()"
        )
    return f"{path}: the model has no such module, or none that mlx-lm can adapt"


def _only_parameter(path: str, ours: list[tuple[str, PeftModule]], settings: PeftSettings) -> str:
    """Which of a mixture's parameters is adapted, where one alone is."""
    for name in sorted({peft_module.parameter for _, peft_module in ours}):
        if _targeted(f"{path}.{name}", settings):
            return name
    return "gate_up_proj"


def _targeted(name: str, settings: PeftSettings) -> bool:
    """Whether target_parameters names it, by PEFT's own rule."""
    return any(name == t or name.endswith(f".{t}") for t in settings.parameters)


def _plain(
    ours: tuple[str, PeftModule], stored: Wrapper, settings: PeftSettings
) -> tuple[str, ModuleAdapter] | str:
    path, peft_module = ours
    parts = stored.parts
    if settings.dora and peft_module.embedding:
        return f"{stored.path}: mlx-lm computes DoRA on an embedding differently"
    if why := _incomplete(parts, settings.dora):
        return f"{stored.path}: {why}"
    a, b = parts["a"], parts["b"]
    out, size = peft_module.shape[::-1] if peft_module.embedding else peft_module.shape
    if a.shape != (a.shape[0], size) or b.shape != (out, a.shape[0]):
        return _misfit(stored.path, a, b, peft_module)
    m = parts["m"].reshape(-1) if "m" in parts else None
    if m is not None and m.size != out:
        return f"{stored.path}: its magnitude has {m.size} values for {out} rows"
    full = f"{stored.path}.{peft_module.parameter}"
    by_parameter = _targeted(full, settings)
    scale = _scale(full if by_parameter else stored.path, a.shape[0], settings)
    if isinstance(scale, str):
        return scale
    return path, ModuleAdapter(Factors(a.T, b.T, m), scale)


def _experts(
    parts: list[tuple[str, PeftModule]], stored: Wrapper, target: str, settings: PeftSettings
) -> Iterator[tuple[str, ModuleAdapter] | str]:
    if settings.dora:
        yield f"{target}: mlx-lm has no DoRA for experts"
        return
    if why := _incomplete(stored.parts, False):
        yield f"{target}: {why}"
        return
    a, b = stored.parts["a"], stored.parts["b"]
    count, out, size = parts[0][1].shape
    rows = [peft_module.rows for _, peft_module in parts if peft_module.rows is not None]
    total = out * len(rows) if rows else out
    if len(a) % count or a.ndim != 2 or a.shape[1] != size or b.shape != (total, len(a)):
        yield _misfit(target, a, b, parts[0][1])
        return
    rank = len(a) // count
    scale = _scale(target, rank, settings)
    if isinstance(scale, str):
        yield scale
        return
    fused = stacked_experts(a, b, count)
    factors = split_experts(fused, rows) if rows else [fused]
    untouched = [is_zero(f) for f in factors]
    for (path, _), split, zero in zip(parts, factors, untouched, strict=True):
        if not zero or all(untouched):
            yield path, ModuleAdapter(split, scale)


def _incomplete(parts: Mapping[str, mx.array], dora: bool) -> str:
    wanted = {"a", "b", "m"} if dora else {"a", "b"}
    missing = sorted(wanted - parts.keys())
    names = {"a": "lora_A", "b": "lora_B", "m": "lora_magnitude_vector"}
    if missing:
        return f"no {', '.join(names[m] for m in missing)}"
    if not dora and "m" in parts:
        return "a lora_magnitude_vector, but the config says use_dora false"
    if any(parts[p].ndim != 2 or 0 in parts[p].shape for p in ("a", "b")):
        return "lora_A and lora_B are not matrices"
    return ""


def _misfit(path: str, a: mx.array, b: mx.array, ours: PeftModule) -> str:
    return (
        f"{path}: lora_A {a.shape} and lora_B {b.shape} do not fit the model's weight {ours.shape}"
    )


def _scale(target: str, rank: int, settings: PeftSettings) -> float | str:
    """The factor of a module's product, or why its rank cannot be what the config says."""
    expected = settings.rank_of(target)
    if rank != expected or rank > MAX_RANK:
        return f"{target}: its tensors have rank {rank}, the config says {expected}"
    return settings.scale_of(target, rank)


def _tied_problems(
    adapters: Mapping[str, ModuleAdapter], head: Wrapper | None, module_map: ModuleMap
) -> list[str]:
    """An embedding that is also the head has one adapter in mlx-lm, two in PEFT."""
    embedding = adapters.get(module_map.tied)
    if embedding is None and head is not None:
        return [
            f"{head.path}: only the head is adapted, whose weights mlx-lm shares with the embedding"
        ]
    if embedding is None or module_map.tied == "":
        return []
    a, b, _ = embedding.factors
    same = (
        head is not None
        and "a" in head.parts
        and "b" in head.parts
        and _equal(head.parts["a"], b)
        and _equal(head.parts["b"], a)
    )
    if same:
        return []
    return [
        f"{module_map.tied}: only the embedding is adapted, whose weights mlx-lm shares with the "
        "head; PEFT trains both together with ensure_weight_tying"
    ]


def _equal(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool(mx.array_equal(a, b).item())


def _judge_copy(
    path: str, value: mx.array, index: Index, base_weight: BaseWeight
) -> tuple[list[str], list[str]]:
    """What to report of a full weight: nothing is lost if it is the base's own."""
    ours = index.get(canonical(path)) or (index.get("embed_tokens") if path == HEAD else None)
    if not ours or ours[0][1].experts:
        return [], [f"{path}: a full weight, which an adapter of mlx-lm does not hold"]
    shape = ours[0][1].shape
    if value.shape != shape:
        return [], [
            f"{path}: a full weight of shape {value.shape}, the model's is {shape}: tokens were "
            "added; run merge_and_unload() in PEFT and convert the model"
        ]
    base, quantized = base_weight(ours[0][0])
    off = mx.linalg.norm(value.astype(mx.float32) - base) / (mx.linalg.norm(base) + 1e-30)
    if (off <= (QUANTIZED if quantized else ROUNDED)).item():
        return [f"{path}: left out, a copy of the base's own weight."], []
    return [], [
        f"{path}: a full weight that is not the base's, which an adapter of mlx-lm does not "
        "hold: run merge_and_unload() in PEFT and convert the model"
    ]
