"""What families are compared on: three ragged pairs, and tiny models whose windows they exceed."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.model.tree_forward import LevelArrays, PrefixKVCache, level_caches
from tests import tiny
from tests.families import REACH, VOCABULARY

# Seeds with which routers are far from ties, found by trying.
SEEDS = {
    "mixtral": 1,
    "qwen3_moe": 3,
    "gemma4_text": 26,
    "gpt_oss": 1,
    "deepseek_v3": 77,
    "qwen3_next": 5,
}
# Random weights as trained ones are: routers that tell their experts apart; gemma4 divides neither
# its queries (by the root of the head's size) nor the router's input (by that of the hidden size).
ROUTERS = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "router.weight", "router.proj.weight")
SCALES = dict.fromkeys(ROUTERS, 3.0)
GEMMA4_SCALES = SCALES | {"router.scale": 8.0, "q_norm.weight": 0.18}
BITS = (None, 4)


def build_pairs() -> list[EncodedPair]:
    """Three ragged pairs after one system prompt; LAYOUT lists the calls that they become."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(1, VOCABULARY, count).astype(np.int32)

    system, alike, whole = tokens(34), tokens(3), tokens(5)
    prompts = [np.concatenate([system, tokens(n)]) for n in (40, 43, 13)]
    responses = [
        (np.concatenate([alike, tokens(2)]), np.concatenate([alike, tokens(30)])),
        (tokens(27), tokens(30)),
        (whole, np.concatenate([whole, tokens(20)])),  # the beginning of the other
    ]
    return [EncodedPair(p, c, r, "") for p, (c, r) in zip(prompts, responses, strict=True)]


PAIRS = build_pairs()
# Rows, length and parent of every call.
LAYOUT = [
    (1, 34, -1),  # the system prompt
    (1, 18, 0),  # the last pair's prompt and its shorter response
    (1, 19, 1),  # the rest of its longer one
    (2, 43, 0),  # two pair prefixes of equal length, one of them with three response tokens
    (1, 2, 3),  # a tail of one token, filled up to two
    (3, 29, 3),  # tails of 29, 26 and 29 tokens
]


def build_model(
    family: str,
    bits: int | None = None,
    *,
    names: tuple[str, ...] = ("all-linear",),
    kind: str = "lora",
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """A tiny model whose windows and thresholds PAIRS exceed, prepared for training."""
    seed = SEEDS.get(family, 0) if seed is None else seed
    model, _ = tiny.build_model(family, seed, **REACH.get(family, {}))
    parameters = tree_flatten(model.parameters())
    model.update(tree_unflatten([(k, _lively(family, k, v)) for k, v in parameters]))
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda _, module: _quantizable(module))
    if kind == "full":
        lora.unfreeze_blocks(model, -1)
    else:
        targets = lora.find_targets(model, list(names), -1)
        lora.attach(model, targets, kind=kind, rank=4, scale=2.0, dropout=dropout, bits={})
        for _, module in model.named_modules():
            if "lora_b" in module:
                module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    mx.eval(model.parameters())
    return model.train()


def _lively(family: str, name: str, value: mx.array) -> mx.array:
    """A parameter without the zeros and ones that would hide a fault, and of a fitting size."""
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    if value.size > 1 and mx.all(value == value.flatten()[0]):
        value = value + 0.1 * mx.random.normal(value.shape)
    scales = GEMMA4_SCALES if family == "gemma4_text" else SCALES
    return value * next((s for end, s in scales.items() if name.endswith(end)), 1.0)


def _quantizable(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def unquantized(model: nn.Module) -> list[str]:
    """The linear layers and embeddings that still hold floats; those of 16 inputs cannot else."""
    kinds = (nn.Linear, SwitchLinear, nn.Embedding)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and not isinstance(module, QuantizedSwitchLinear)
        and _quantizable(module)
    ]


@cache
def model_of(family: str, bits: int | None) -> nn.Module:
    return build_model(family, bits)


def kinds_of(model: nn.Module) -> set[str]:
    """Whether a model's levels pass on keys and values, recurrent states, or both."""
    entries, kinds = list(level_caches(model)), set()
    while entries:
        entry = entries.pop()
        if isinstance(entry, (PrefixKVCache, LevelArrays)):
            kinds.add("attention" if isinstance(entry, PrefixKVCache) else "recurrent")
        else:
            entries.extend(entry.caches)
    return kinds


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, key)
    else:
        yield name, value
