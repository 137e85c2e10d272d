"""Which modules are trained: choose targets, attach LoRA or DoRA, freeze the rest, count."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.model.layer_hooks import base_layer, find_bypassed
from orpo_mlx.model.mlx_lm_api import QuantizedSwitchLinear, SwitchLinear, linear_to_lora_layers

LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
ALL_LINEAR = "all-linear"


class Targets(NamedTuple):
    """The modules to adapt: names below each block, and full names of those outside the blocks."""

    keys: list[str]
    num_layers: int
    routers: list[str]
    named: list[str]  # of the keys, those that were not taken by all-linear alone


class KeyedDropout(nn.Module):
    """Dropout whose masks come from explicit keys: the same keys give the same masks.

    All layers of a model share `keys`; `reset_dropout` sets the chain before each forward.
    """

    def __init__(self, p: float, keys: list[mx.array]):
        super().__init__()
        self._p = p
        self._keys = keys

    @property
    def chain(self) -> list[mx.array]:
        """The list whose one key the next mask is drawn from."""
        return self._keys

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training or not self._keys:
            return x
        self._keys[0], key = mx.random.split(self._keys[0])
        mask = mx.random.bernoulli(1 - self._p, x.shape, key)
        return mx.where(mask, x / (1 - self._p), 0)


def find_targets(model: nn.Module, names: Sequence[str], num_layers: int) -> Targets:
    """The modules that `names` match in the last `num_layers` blocks (-1: all).

    A name matches a module whose path ends with it. Raises OrpoError with the names that the
    model has if one matches nothing.
    """
    blocks = model.layers
    chosen = _last_blocks(model, num_layers)
    inside = {p: m for block in chosen for p, m in block.named_modules() if is_adaptable(m)}
    routers = {path for block in chosen for path in find_routers(block)}
    within = {id(m) for block in blocks for _, m in block.named_modules()}
    outside = {p: m for p, m in model.named_modules() if is_adaptable(m) and id(m) not in within}
    keys, named, unknown = set[str](), set[str](), []
    for name in names:
        if name == ALL_LINEAR:
            matches = [p for p, m in inside.items() if isinstance(m, LINEAR) and p not in routers]
        else:
            matches = [p for p in [*inside, *outside] if p == name or p.endswith("." + name)]
            named.update(matches)
        keys.update(matches)
        if not matches:
            unknown.append(name)
    if unknown:
        raise OrpoError(_unknown(unknown, [*inside, *outside], len(chosen)))
    return Targets(sorted(keys), len(chosen), sorted(keys & routers), sorted(named))


def attach(
    model: nn.Module,
    targets: Targets,
    *,
    kind: str,
    rank: int,
    scale: float,
    dropout: float,
    bits: Mapping[str, int],
) -> dict[str, Any]:
    """Wrap the targets as mlx-lm does, freeze everything else; return mlx-lm's adapter config.

    Layers whose weights the model's own code uses directly are left out; raises OrpoError where one
    was named. `bits` are those of the quantized modules as stored, by path. Weights start from
    MLX's global random state: seed it before.
    """
    if kind == "dora":
        _refuse_dora(model, targets, bits)
    parameters = {"rank": rank, "scale": scale, "dropout": dropout, "keys": targets.keys}
    model.freeze()
    linear_to_lora_layers(model, targets.num_layers, parameters, use_dora=kind == "dora")
    keys: list[mx.array] = []
    for _, module in model.named_modules():
        if "lora_a" in module:
            module.unfreeze(keys=["lora_a", "lora_b", "m"], recurse=False)
            # mlx-lm's own dropout draws from the global random state, which a resumed run lacks.
            module.dropout = KeyedDropout(dropout, keys) if dropout else nn.Identity()
    left_out = _unwrap_bypassed(model, targets)
    parameters["keys"] = [key for key in targets.keys if key not in left_out]
    return {
        "fine_tune_type": kind,
        "num_layers": targets.num_layers,
        "lora_parameters": parameters,
    }


def _unwrap_bypassed(model: nn.Module, targets: Targets) -> set[str]:
    """Take the adapters off again that the model's own code passes by; return their keys."""
    bypassed = find_bypassed(model)
    if not bypassed:
        return set()
    rooms = [model, *_last_blocks(model, targets.num_layers)]
    keys = {
        path
        for room in rooms
        for path, module in room.named_modules()
        if id(module) in bypassed and path in targets.keys
    }
    _refuse_bypassed(keys, targets)
    for room in rooms:
        plain = [
            (path, base_layer(module))
            for path, module in room.named_modules()
            if path in keys and "lora_a" in module
        ]
        if plain:
            room.update_modules(tree_unflatten(plain))
    return keys


def _refuse_bypassed(keys: set[str], targets: Targets) -> None:
    """Raise OrpoError where such layers were named, or nothing else is left."""
    named = sorted(keys & set(targets.named))
    if named:
        raise OrpoError(
            f"--target-modules: {', '.join(named)} cannot have an adapter. The model's own code "
            "uses the weights there directly instead of only calling the layer, so an adapter "
            "would have no effect. Leave them out."
        )
    if keys >= set(targets.keys):
        raise OrpoError(
            f"--target-modules {ALL_LINEAR}: the model's own code uses the weights of every linear "
            "layer directly, so an adapter would have no effect. Name other layers, or use "
            "--fine-tune-type full."
        )


def alpha_for(scale: float, rank: int) -> float:
    """The alpha that gives this scale when it is divided by the rank; an integer if possible."""
    alpha = scale * rank
    near = (alpha, *(alpha * (1 + k * 2.0**-52) for k in (-1, 1)))  # rounding may hide it
    exact = next((value for value in near if value / rank == scale), alpha)
    return int(exact) if exact == int(exact) else exact


def unfreeze_blocks(model: nn.Module, num_layers: int) -> dict[str, Any]:
    """Train the weights of the last blocks themselves; return mlx-lm's adapter config."""
    blocks = _last_blocks(model, num_layers)
    if not blocks:
        raise OrpoError("--num-layers 0 --fine-tune-type full: nothing would be trained.")
    model.freeze()
    for block in blocks:
        block.unfreeze()
    return {"fine_tune_type": "full", "num_layers": len(blocks)}


def dropout_chain(model: nn.Module) -> list[mx.array] | None:
    """The list whose one key all dropout of the model draws from; None without dropout."""
    for _, module in model.named_modules():
        if isinstance(module, KeyedDropout):
            return module.chain
    return None


def reset_dropout(model: nn.Module, key: mx.array) -> None:
    """Start the chain of dropout keys for one forward pass."""
    chain = dropout_chain(model)
    if chain is not None:
        chain[:] = [key]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters; a quantized weight counts its unpacked size."""
    trainable = sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    total = 0
    for _, module in model.named_modules():
        arrays = {k: v for k, v in module.items() if isinstance(v, mx.array)}
        packed = "scales" in arrays and "weight" in arrays
        for name, value in arrays.items():
            if packed and name == "weight":
                total += value.size * 32 // module.bits
            elif not packed or name not in ("scales", "biases"):
                total += value.size
    return trainable, total


def _last_blocks(model: nn.Module, count: int) -> list[nn.Module]:
    """The last blocks of a model (-1: all)."""
    blocks = list(model.layers)
    if count > len(blocks):
        raise OrpoError(f"--num-layers {count}: the model has {len(blocks)} blocks.")
    return blocks if count == -1 else blocks[len(blocks) - count :]


def is_adaptable(module: nn.Module) -> bool:
    """Whether mlx-lm can put an adapter on a module."""
    return isinstance(module, LINEAR + EMBEDDING) or hasattr(module, "to_lora")


def _unknown(names: list[str], paths: list[str], count: int) -> str:
    known = sorted({p.rsplit(".", 1)[-1] for p in paths})
    hints = []
    if not count:
        hints.append(" --num-layers 0 leaves out all blocks.")
    if any(name.endswith("lm_head") for name in names):
        hints.append(" A head that shares the embedding's weights is trained by embed_tokens.")
    return (
        f"--target-modules {','.join(names)}: no such module in the model. "
        f"Allowed: {ALL_LINEAR}, or any of {', '.join(known)}.{''.join(hints)}"
    )


def find_routers(block: nn.Module) -> list[str]:
    """Linear layers that score experts: by name, or next to them with 1 output, or 1 per expert."""
    modules = dict(block.named_modules())
    experts = {
        p: m.num_experts
        for p, m in modules.items()
        if isinstance(m, (SwitchLinear, QuantizedSwitchLinear))
    }
    mixture = bool(experts) or any("experts" in p.split(".") for p in modules)  # dbrx has a list
    routers = []
    for path, module in modules.items():
        if not mixture or not isinstance(module, (nn.Linear, nn.QuantizedLinear)):
            continue
        # Not in the block itself, which holds attention too.
        parents = [path[:i] for i in range(len(path) - 1, 0, -1) if path[i] == "."]
        counts = next((b for p in parents if (b := _below(p, experts))), set())
        if "router" in path.split(".") or (counts and module.weight.shape[0] in {*counts, 1}):
            routers.append(path)
    return routers


def _below(parent: str, experts: Mapping[str, int]) -> set[int]:
    """How many experts the layers under a path have."""
    return {count for path, count in experts.items() if path.startswith(parent + ".")}


def _refuse_dora(model: nn.Module, targets: Targets, bits: Mapping[str, int]) -> None:
    """Raise OrpoError for what mlx-lm's DoRA cannot do or other tools cannot read, by name."""
    blocks = _last_blocks(model, targets.num_layers)
    inside = {id(m) for b in blocks for p, m in b.named_modules() if p in targets.keys}
    faults = []
    for path, module in model.named_modules():
        if id(module) not in inside and path not in targets.keys:
            continue
        if isinstance(module, EMBEDDING):
            faults.append(f"{path}: DoRA on an embedding cannot be read by other tools")
        elif not isinstance(module, (nn.Linear, nn.QuantizedLinear)):
            faults.append(f"{path}: mlx-lm has no DoRA for {type(module).__name__}")
        elif 32 % bits.get(path, 32):
            # Dequantized for the CPU or not: mlx-lm is to load the adapter on the stored base.
            faults.append(f"{path}: mlx-lm's DoRA cannot read {bits[path]}-bit weights")
    if faults:
        why = collected("--fine-tune-type dora:", sorted(faults))
        raise OrpoError(f"{why}\nUse --fine-tune-type lora, or other --target-modules.")
