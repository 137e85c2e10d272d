"""Which tensors of a Hugging Face checkpoint each parameter of an MLX model comes from.

Learned from the model's own `sanitize`: dummy tensors go in, and what comes out shows how they were
renamed, stacked, split or transposed. Knows nothing of adapters, nor of transformers' modules.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.model.mlx_lm_api import MultiLinear, SwitchLinear, get_classes
from orpo_mlx.model.rope import rope_settings
from orpo_mlx.model.safetensors import StoredTensor

SPACING = 8.0  # between the numbers of dummies: a norm's weight plus 1 is no other's number
COLUMNS = 4  # of a dummy matrix: enough to distinguish columns from rows
# What is stored with a weight of fewer bits.
COMPANIONS = ("_scale_inv", "_scales", ".scales", ".biases", "activation_scale", "input_scale")
# What the files of mixtures of experts call gate, up and down. {block} holds the mixture, {group}
# is mlx-lm's module of all experts; a name without {expert} holds all of them, stacked; one that
# is both gate and up holds the rows of both.
EXPERT_NAMES = (
    tuple(f"{{block}}.experts.{{expert}}.{n}_proj.weight" for n in ("gate", "up", "down")),
    tuple(f"{{block}}.experts.{{expert}}.{n}.weight" for n in ("w1", "w3", "w2")),
    tuple(f"{{block}}.experts.{n}_proj" for n in ("gate_up", "gate_up", "down")),
    tuple(f"{{block}}.{n}_proj" for n in ("gate_up", "gate_up", "down")),
    tuple(f"{{block}}.{n}_linear.weight" for n in ("input", "input", "output")),
    tuple(f"{{group}}.{n}_proj_blocks" for n in ("gate_up", "gate_up", "down")),  # MXFP4
)
EXPERT_LEAVES = ("gate_proj", "up_proj", "down_proj")
Shapes = dict[str, tuple[int, ...]]


class Origin(NamedTuple):
    """The tensors of a Hugging Face checkpoint that one parameter of the MLX model comes from."""

    names: tuple[str, ...]  # one tensor, or one an expert, in order, stacked on axis 0 of ours
    rows: slice | None  # the rows (output features) of a fused tensor that are ours; None: all
    transposed: bool  # the last two axes are swapped against ours


class TracedParameters(NamedTuple):
    """What `sanitize` showed: the origins by MLX parameter, and those that have none."""

    origins: dict[str, Origin]
    computed: list[str]  # computed rather than renamed, stacked, split or transposed


def trace_origins(
    config: Mapping[str, Any], stored: Mapping[str, StoredTensor] | None = None
) -> dict[str, Origin]:
    """The origin of every parameter, by its path in the MLX model.

    Raises OrpoError as `trace_parameters`, and, with their names, for parameters that are computed.
    """
    origins, computed = trace_parameters(config, stored)
    if computed:
        raise collected(
            f"A model of type {config.get('model_type')} has tensors that no Hugging Face "
            "checkpoint holds as they are:",
            computed,
        )
    return origins


def trace_parameters(
    config: Mapping[str, Any], stored: Mapping[str, StoredTensor] | None = None
) -> TracedParameters:
    """The origins of those parameters that have one.

    `stored` are the checkpoint's tensors; None, or tensors of an MLX folder: its names are found,
    and proven by `sanitize`. Raises OrpoError if mlx-lm does not know the model.
    """
    model = build_skeleton(config)
    parameters = {name: value.shape for name, value in tree_flatten(model.parameters())}
    if stored is not None:
        shapes = {n: t.shape for n, t in stored.items() if not n.endswith(COMPANIONS)}
        if not shapes.keys() <= parameters.keys():
            return _trace_sanitize(config, shapes, set())
        # gemma3_text makes a head, and drops it where the files have none
        parameters = {name: shape for name, shape in parameters.items() if name in shapes}
    absorbed = _absorbed(model)
    for names in EXPERT_NAMES if _experts(model) else ():
        shapes = _renamed(parameters, model, names)
        if _passes(config, shapes):
            return _trace_sanitize(config, shapes, absorbed)
    unknown = {f"{path}.weight" for path in _experts(model)}
    return _trace_sanitize(config, _renamed(parameters, model, None), absorbed | unknown)


def build_skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The unquantized model of a config, its weights not yet computed; raises OrpoError."""
    try:
        fixed = {**config, **rope_settings(config)}
        model_class, arguments = get_classes(fixed)
        model: nn.Module = model_class(arguments.from_dict(fixed))
    except OrpoError:
        raise
    except (Exception, SystemExit) as error:  # mlx-lm's olmo exits where a package is missing
        raise OrpoError(
            f"mlx-lm cannot build a model of type {config.get('model_type')!r}: {error}"
        ) from None
    return model


def _experts(model: nn.Module) -> dict[str, SwitchLinear]:
    return {path: m for path, m in model.named_modules() if isinstance(m, SwitchLinear)}


def _absorbed(model: nn.Module) -> set[str]:
    """Parameters that mlx-lm makes of others: attention's up-projection, absorbed."""
    return {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, MultiLinear)}


def _renamed(parameters: Shapes, model: nn.Module, names: tuple[str, ...] | None) -> Shapes:
    """The tensors of a checkpoint: ours, but for experts, by `names`, and convolutions."""
    shapes = {name: _before_moving(name, shape) for name, shape in parameters.items()}
    for path, module in _experts(model).items() if names else ():
        group, _, leaf = path.rpartition(".")
        if leaf not in EXPERT_LEAVES or names is None:
            continue
        template = names[EXPERT_LEAVES.index(leaf)]
        times = names.count(template)
        count, out, size = shapes.pop(f"{path}.weight")
        block = group.rpartition(".")[0]
        if "{expert}" in template:
            for expert in range(count):
                shapes[template.format(block=block, expert=expert)] = (out, size)
            continue
        name = template.format(block=block, group=group)
        packed = name.endswith("_blocks")
        shapes[name] = (count, out * times, size // 8, 4) if packed else (count, out * times, size)
        if packed and "bias" in module:
            del shapes[f"{path}.bias"]
            shapes[name.removesuffix("_blocks") + "_bias"] = (count, out * times)
    return shapes


def _before_moving(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """torch's shape of a depthwise convolution over time: (C, 1, K), ours is (C, K, 1)."""
    moved = len(shape) == 3 and shape[-1] == 1 and "conv" in name
    return (shape[0], 1, shape[1]) if moved else shape


def _passes(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Whether `sanitize` makes exactly the model's parameters of these tensors."""
    try:
        made, wanted = _sanitize(config, _fill(shapes, lambda number, shape: mx.array(0.0)))
    except OrpoError:
        return False
    return made.keys() == wanted


def _trace_sanitize(
    config: Mapping[str, Any], shapes: Shapes, computed: set[str]
) -> TracedParameters:
    small = {name: _few_columns(name, shape) for name, shape in shapes.items()}
    names = list(small)
    runs = [_sanitize(config, _fill(small, fill)) for fill in FILLS]
    origins = {}
    wrong = set(computed)
    for name in sorted(runs[0][1]):
        values = [made[name] for made, _ in runs if name in made]
        origin = None
        if name not in computed and len(values) == len(FILLS):
            origin = _origin(name, [_numbers(v) for v in values], names, small)
        if origin is None:
            wrong.add(name)
        else:
            origins[name] = origin
    return TracedParameters(origins, sorted(wrong))


def _few_columns(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A smaller shape that `sanitize` treats the same way."""
    if len(shape) < 2 or name.endswith("bias"):
        return shape
    if len(shape) == 4:  # packed: (E, rows, groups, bytes)
        return (*shape[:2], 1, COLUMNS)
    return (*shape[:-1], min(shape[-1], COLUMNS))


def _row_axis(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) > 2 else 0


def _index_along(axis: int, shape: tuple[int, ...]) -> mx.array:
    if not shape:
        return mx.array(0.0)
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return mx.arange(shape[axis]).astype(mx.float32).reshape(sizes)


# What a dummy holds: its number, or the index of its row, its column, its expert.
Fill = Callable[[int, tuple[int, ...]], mx.array]
FILLS: tuple[Fill, ...] = (
    lambda number, shape: mx.array((number + 1) * SPACING),
    lambda number, shape: _index_along(_row_axis(shape), shape),
    lambda number, shape: _index_along(len(shape) - 1, shape),
    lambda number, shape: _index_along(0, shape),
)


def _fill(shapes: Shapes, fill: Fill) -> dict[str, mx.array]:
    """Dummy tensors; broadcast, so that they take no memory."""
    return {
        name: mx.broadcast_to(fill(number, shape), shape)
        for number, (name, shape) in enumerate(shapes.items())
    }


def _sanitize(
    config: Mapping[str, Any], tensors: dict[str, mx.array]
) -> tuple[dict[str, mx.array], set[str]]:
    """What `sanitize` makes of tensors, and the parameters that the model then has."""
    model = build_skeleton(config)  # a new one: gemma3_text's sanitize changes the model
    try:
        made: dict[str, mx.array] = (
            model.sanitize(tensors) if hasattr(model, "sanitize") else tensors
        )
    except Exception as error:
        raise OrpoError(
            f"The names of a checkpoint of type {config.get('model_type')!r} cannot be followed: "
            f"mlx-lm's sanitize fails on them ({type(error).__name__}: {error})."
        ) from None
    return made, {name for name, _ in tree_flatten(model.parameters())}


def _numbers(value: mx.array) -> np.ndarray:
    """The values of a dummy; sanitize may have looked at its bytes as integers."""
    if value.dtype == mx.uint32:
        value = value.view(mx.float32)
    return np.array(value.astype(mx.float32))


def _origin(path: str, values: list[np.ndarray], names: list[str], shapes: Shapes) -> Origin | None:
    """The origin of a parameter by what the four dummies became; None if it is computed."""
    number, *indices = values
    if number.size == 0 or (number % SPACING).any():
        return None
    numbers = [int(n / SPACING) - 1 for n in dict.fromkeys(number.reshape(-1).tolist())]
    if not all(0 <= n < len(names) for n in numbers):
        return None
    shape = shapes[names[numbers[0]]]
    stacked = number.ndim == len(shape) + 1
    if not stacked:
        slices = [tuple(indices)] if len(numbers) == 1 else []
    else:
        whole = len(numbers) == len(number) and all((n == n.flat[0]).all() for n in number)
        slices = list(zip(*indices, strict=True)) if whole else []
    candidates = {_rows_of(row, column, first, shape, path) for row, column, first in slices}
    match = candidates.pop() if len(candidates) == 1 else None
    if match is None:
        return None
    rows, transposed = match
    size = shape[-1] if path.endswith(".bias") else shape[_row_axis(shape)] if shape else 0
    everything = rows == (0, size, 1)
    return Origin(
        tuple(names[n] for n in numbers), None if everything else slice(*rows), transposed
    )


Rows = tuple[int, int, int]  # start, stop, step


def _rows_of(
    row: np.ndarray, column: np.ndarray, first: np.ndarray, shape: tuple[int, ...], path: str
) -> tuple[Rows, bool] | None:
    """The rows, and whether they are transposed; None if the values are in no such order."""
    last = row.ndim - 1
    if not shape:
        return (0, 0, 1), False
    if row.ndim > 2 and _along(first, 0) != (0, shape[0], 1):
        return None
    if row.ndim == 1 or path.endswith(".bias"):  # a bias an expert: (E, out)
        rows = _along(column, last)
        return (rows, False) if rows else None
    for transposed, rows_at, columns_at in ((False, last - 1, last), (True, last, last - 1)):
        rows = _along(row, rows_at)
        if rows and _along(column, columns_at) == (0, shape[-1], 1):
            return rows, transposed
    return None


def _along(values: np.ndarray, axis: int) -> Rows | None:
    """The steps in which values grow along an axis; None if not evenly, or along another too."""
    lines = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    line = lines[0]
    start, step = int(line[0]), int(line[1] - line[0]) if len(line) > 1 else 1
    expected = start + step * np.arange(len(line))
    if step < 1 or not (lines == expected).all():
        return None
    return start, int(expected[-1]) + 1, step
