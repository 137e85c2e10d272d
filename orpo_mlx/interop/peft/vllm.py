"""What vLLM would refuse, or compute otherwise, of an adapter in PEFT's layout.

Source: github.com/vllm-project/vllm, vllm/lora/peft_helper.py (commit e745bafff) and
lora_model.py (0306474e9), vllm/config/lora.py (01230b401). Not run by us.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes, 1 aside
DEFAULT_RANK = 16
_OUTSIDE = ("embed_tokens", "lm_head", "wte", "embed_out")


def vllm_notes(config: Mapping[str, Any]) -> list[str]:
    """Sentences about an adapter_config.json for one who serves the adapter; none if it is plain.

    vLLM's loader reads r, lora_alpha, use_rslora, use_dora, bias and modules_to_save; which
    modules are adapted it learns from the names of the tensors.
    """
    notes = []
    if config.get("use_dora"):
        notes.append("vLLM refuses DoRA: fuse the adapter and serve the fused folder.")
    if config.get("modules_to_save"):
        notes.append("vLLM refuses modules_to_save: fuse the adapter and serve the fused folder.")
    if config.get("bias", "none") != "none":
        notes.append(f"vLLM refuses bias {config['bias']!r}.")
    notes += _rank_notes(config)
    if unlike := _scaled_otherwise(config):
        notes.append(
            "vLLM reads no alpha_pattern and no rank_pattern and would scale wrongly: "
            f"{_listed(unlike)}. Fuse the adapter."
        )
    if outside := [m for m in _targets(config) if m.rpartition(".")[2] in _OUTSIDE]:
        notes.append(
            f"vLLM takes {_listed(outside)} only for architectures whose class names "
            "embedding_modules; elsewhere it refuses the adapter."
        )
    if any("experts" in p for p in config.get("target_parameters") or []):
        notes.append("vLLM takes experts in this layout only for some mixtures: try yours.")
    return notes


def max_lora_rank(config: Mapping[str, Any]) -> int | None:
    """The least --max-lora-rank for an adapter_config.json; None if there is none."""
    return next((r for r in RANKS if r >= _highest_rank(config)), None)


def _highest_rank(config: Mapping[str, Any]) -> int:
    return max([config.get("r") or 8, *(config.get("rank_pattern") or {}).values()])


def _rank_notes(config: Mapping[str, Any]) -> list[str]:
    """What --max-lora-rank must be, if not what it is by default."""
    rank, allowed = _highest_rank(config), max_lora_rank(config)
    if allowed is None:
        return [f"vLLM takes ranks up to {RANKS[-1]}, this adapter has {rank}: fuse it."]
    return [] if rank <= DEFAULT_RANK else [f"vLLM needs --max-lora-rank {allowed}."]


def _scaled_otherwise(config: Mapping[str, Any]) -> list[str]:
    """The keys of the patterns whose scale is not that of the whole adapter."""
    ranks, alphas = (config.get(k) or {} for k in ("rank_pattern", "alpha_pattern"))

    def scale(alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    usual = scale(config["lora_alpha"], config["r"])
    return [
        key
        for key in sorted({*ranks, *alphas})
        if not math.isclose(
            scale(alphas.get(key, config["lora_alpha"]), ranks.get(key, config["r"])),
            usual,
            rel_tol=1e-6,  # alpha is rounded
        )
    ]


def _targets(config: Mapping[str, Any]) -> Iterable[str]:
    targets = config.get("target_modules") or []
    return [targets] if isinstance(targets, str) else targets


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
