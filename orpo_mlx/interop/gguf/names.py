"""Which models llama.cpp computes as mlx-lm does, and what a GGUF file calls a parameter."""

import re
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra

GGUF_EMBEDDING = "token_embd.weight"


class NotInGgufError(OrpoError):
    """This exporter does not write such a model; llama.cpp's own converter may."""


class Architecture(NamedTuple):
    """What llama.cpp calls a model, and whether its rope rotates adjacent rows.

    Hugging Face's rope rotates rows half a head apart: there the rows of q and k are put in pairs.
    """

    name: str
    pairs: bool


# By mlx-lm's model_type. tests/parity/test_llama_cpp.py computes base and adapter in llama.cpp.
PROVEN = {
    "llama": Architecture("llama", pairs=True),
    "mistral": Architecture("llama", pairs=True),
    "mixtral": Architecture("llama", pairs=True),
    "granite": Architecture("granite", pairs=True),
    "smollm3": Architecture("smollm3", pairs=True),
    "qwen2": Architecture("qwen2", pairs=False),
    "qwen3": Architecture("qwen3", pairs=False),
    "qwen3_moe": Architecture("qwen3moe", pairs=False),
    "olmo2": Architecture("olmo2", pairs=False),
    "phi3": Architecture("phi3", pairs=False),
    "glm4": Architecture("glm4", pairs=False),  # Hugging Face's rotates adjacent rows too
}
# Their bases already differ by 5e-4 and 9e-4, measured once; adapters by no more.
UNPROVEN = {
    "gemma2": Architecture("gemma2", pairs=False),
    "starcoder2": Architecture("starcoder2", pairs=False),
}


def architecture_of(config: dict[str, Any], *, adapter: bool) -> Architecture:
    """The architecture; an adapter is enough for the unproven ones.

    Raises NotInGgufError for a model that llama.cpp was not shown to compute as mlx-lm does.
    """
    kind = config.get("model_type", "")
    known = PROVEN | UNPROVEN if adapter else PROVEN
    if kind not in known:
        what = "an adapter of" if adapter else "the weights of"
        raise NotInGgufError(
            f"--to gguf: {what} model_type {kind!r} cannot be written "
            f"(proven in llama.cpp: {', '.join(sorted(known))})."
        )
    if config.get("rope_traditional") not in (None, kind == "glm4"):
        raise OrpoError("--to gguf: llama.cpp does not support rope_traditional of config.json.")
    return known[kind]


class Names:
    """GGUF names of one model's parameters, by the `gguf` package's own map."""

    def __init__(self, architecture: Architecture, layers: int) -> None:
        gguf = import_extra("gguf", "gguf")
        numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map: Any = gguf.get_tensor_name_map(numbers[architecture.name], layers)

    def find(self, parameter: str) -> str | None:
        """`blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`, or None."""
        renamed = parameter.replace(".block_sparse_moe.", ".mlp.").replace("switch_mlp", "experts")
        name: str | None = self._map.get_name(renamed, (".weight", ".bias"))
        return name


def heads_of(name: str, config: dict[str, Any]) -> int | None:
    """How many heads the rows of a tensor belong to, if rope rotates their outputs."""
    heads = config["num_attention_heads"]
    part = re.search(r"\.attn_([qk])\.", name)
    if part is None:
        return None
    return heads if part[1] == "q" else config.get("num_key_value_heads") or heads


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * d, ...) with those that rope rotates together, d/2 apart, made adjacent."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
