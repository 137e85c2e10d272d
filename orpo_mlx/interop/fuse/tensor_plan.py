"""What happens to each stored tensor of a base: copy, change, dequantize or quantize again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.nn as nn
from mlx.utils import tree_flatten

from orpo_mlx.errors import collected
from orpo_mlx.interop.fuse.rows import FileTensor
from orpo_mlx.model.adapter_checks import FLOATS
from orpo_mlx.model.dequantize import Packing, packing_of
from orpo_mlx.model.updates import Update

WEIGHT = ".weight"


class Edit(NamedTuple):
    """A part of a stored tensor that is a parameter of ours, or one of its experts."""

    updates: Sequence[Update]
    rows: slice = slice(None)  # of the stored tensor, which are ours in that order
    transposed: bool = False  # the stored matrices have our rows as columns
    expert: int | None = None  # whose matrix it is, if the experts are stored one by one
    stacked: bool = False  # the stored tensor holds the matrices of all experts


class Job(NamedTuple):
    """A stored weight that is not copied as it is."""

    edits: Sequence[Edit]
    packing: Packing | None  # as it is stored
    repack: bool  # quantized again like that
    dtype: str  # of what is written otherwise


class ModelLayout(NamedTuple):
    """The parameters of a base as mlx-lm builds it: shapes alone."""

    shapes: Mapping[str, tuple[int, ...]]
    packings: Mapping[str, Packing]  # by the path of the module


def layout_of(model: nn.Module) -> ModelLayout:
    """The shapes and packings of a model; call it before an adapter is put onto it."""
    packings = {path: p for path, m in model.named_modules() if (p := packing_of(m))}
    return ModelLayout({n: v.shape for n, v in tree_flatten(model.parameters())}, packings)


def same_as_mlx(
    layout: ModelLayout, stored: Mapping[str, FileTensor], needed: Sequence[str]
) -> bool:
    """Whether the folder has the parameters under mlx-lm's names, in its shapes."""
    return all(n in stored and stored[n].shape == layout.shapes[n] for n in needed)


def direct_edits(
    layout: ModelLayout, updates: Mapping[str, Sequence[Update]]
) -> dict[str, list[Edit]]:
    """The edits by stored name where the names are mlx-lm's own."""
    return {
        name: [Edit(changes, stacked=len(layout.shapes[name]) == 3)]
        for name, changes in updates.items()
    }


def traced_edits(
    origins: Mapping[str, Any],  # origins.Origin by parameter
    stored: Mapping[str, FileTensor],
    updates: Mapping[str, Sequence[Update]],
) -> dict[str, list[Edit]]:
    """The edits by stored name, where sanitize renames, splits, stacks or transposes."""
    edits: dict[str, list[Edit]] = {}
    for parameter, changes in updates.items():
        names, rows, transposed = origins[parameter]
        alone = len(names) > 1 or len(stored[names[0]].shape) < _dimensions(changes)
        for number, name in enumerate(names):
            edits.setdefault(name, []).append(
                Edit(
                    changes,
                    rows or slice(None),
                    transposed,
                    expert=number if alone else None,
                    stacked=not alone and len(stored[name].shape) == 3,
                )
            )
    return edits


def _dimensions(updates: Sequence[Update]) -> int:
    given = updates[0].left if updates[0].trained is None else updates[0].trained
    assert given is not None
    return given.ndim


def plan_jobs(
    layout: ModelLayout,
    stored: Mapping[str, FileTensor],
    edits: Mapping[str, Sequence[Edit]],
    *,
    dequantize: bool,
    dtype: str | None,  # of plain weights; None: as stored
) -> dict[str, Job]:
    """The jobs by stored name; every other tensor is copied.

    Raises OrpoError for quantized layers that cannot be made plain or quantized again.
    """
    jobs: dict[str, Job] = {}
    problems = _kept_packed(layout, stored) if dequantize else []
    for name, tensor in stored.items():
        path = name.removesuffix(WEIGHT)
        packing = layout.packings.get(path) if name.endswith(WEIGHT) else None
        changes = edits.get(name, ())
        if packing and not dequantize and changes and f"{path}.global_scale" in stored:
            problems.append(
                f"{path} has a global scale, which cannot be computed again: use --dequantize"
            )
        elif packing and (dequantize or changes):
            plain = dtype or _plain_type(stored, path)
            jobs[name] = Job(changes, packing, not dequantize, plain)
        elif not packing and _is_part(name, layout):
            continue
        elif changes and tensor.dtype not in FLOATS:
            problems.append(
                f"{name} is stored as {tensor.dtype}: convert the base to an MLX folder first "
                "(orpo-mlx convert BASE --output FOLDER)"
            )
        elif changes or (dtype not in (None, tensor.dtype) and tensor.dtype in FLOATS):
            jobs[name] = Job(changes, None, False, dtype or tensor.dtype)
    if problems:
        raise collected("These layers cannot be written as requested:", problems)
    return jobs


def _kept_packed(layout: ModelLayout, stored: Mapping[str, FileTensor]) -> list[str]:
    """Quantized layers of towers that mlx-lm does not read, so that it cannot make them plain."""
    paths = sorted(n.removesuffix(".scales") for n in stored if n.endswith(".scales"))
    return [
        f"{path} is quantized and not part of the text model: leave out --dequantize"
        for path in paths
        if path not in layout.packings
    ]


def _is_part(name: str, layout: ModelLayout) -> bool:
    """Whether a tensor belongs to a quantized weight."""
    path, _, leaf = name.rpartition(".")
    return path in layout.packings and leaf in ("scales", "biases", "global_scale")


def _plain_type(stored: Mapping[str, FileTensor], path: str) -> str:
    """The type in which a quantized layer is written plain: that of its scales."""
    dtype = stored[f"{path}.scales"].dtype
    return dtype if dtype in FLOATS else "BF16"


def plain_shape(tensor: FileTensor, packing: Packing) -> tuple[int, ...]:
    return (*tensor.shape[:-1], tensor.width * 32 // packing.bits)
