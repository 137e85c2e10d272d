"""The fused model against base + adapter on held-out pairs: how far it is, and how far the base."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx import backend
from orpo_mlx.config.groups import TextOptions
from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Progress
from orpo_mlx.interop.fuse.tensor_plan import ModelLayout
from orpo_mlx.loading import build_encoder, check_ids, encode_all, template_of, thinking_for
from orpo_mlx.model.adapters import Adapter, put_onto
from orpo_mlx.model.base import Base, load_base, why_not_finite
from orpo_mlx.model.divergence import token_divergence, word_logps
from orpo_mlx.model.mlx_lm_api import make_prompt_cache
from orpo_mlx.model.updates import Update, fused_rows

KEPT_BYTES = 256_000_000  # of log-probs of each model
BASE_STAGE = "Measuring the base"
LONGEST = 128  # tokens of a response
Logps = list[np.ndarray]  # (T, V) a response, float32


class Drift(NamedTuple):
    """Means over the response tokens of held-out pairs; KL in nats, from base + adapter."""

    tokens: int
    kl_fused: float
    kl_base: float
    top1_fused: float  # share of tokens whose likeliest successor is the same
    top1_base: float
    largest: float  # difference of a log-prob of the fused model, of words above 1e-6

    @property
    def lost(self) -> float:
        """The share of the way back to the base; 0 where the adapter changes nothing."""
        return self.kl_fused / self.kl_base if self.kl_base > 0 else 0.0


class Trial(NamedTuple):
    """What the models are compared on, and how they are opened."""

    pairs: Sequence[PreferencePair]
    run: Path  # whose tokenizer and template make the text
    trust_remote_code: bool
    dequantized: bool  # float32 also on a GPU


def open_trial(base: Path, trial: Trial, report: Callback) -> tuple[Base, list[EncodedPair]]:
    """The base as it is computed, and ids of the pairs; raises OrpoError if none can be made."""
    opened = _open(base, trial)
    template = template_of(TextOptions(), trial.run)
    encoder = build_encoder(opened, template, thinking_for(template, trial.pairs, report))
    encoded = encode_all(encoder, trial.pairs, "held-out", report)
    check_ids(opened, encoded)
    return opened, encoded


def measure_base(
    opened: Base,
    encoded: Sequence[EncodedPair],
    adapters: Sequence[Adapter],
    updates: Mapping[str, Sequence[Update]],
    report: Callback,
) -> tuple[Logps, Logps]:
    """Log-probs of the base alone, and with its adapters, which are put onto it."""
    before = _logps(opened.model, encoded, BASE_STAGE, report)
    if has_merge(adapters, updates):
        _merge(opened.model, updates)
    else:
        put_onto(opened.model, adapters[0])
    return before, _logps(opened.model, encoded, "Measuring the adapter", report)


def measure_fused(
    folder: Path, encoded: Sequence[EncodedPair], trial: Trial, report: Callback
) -> Logps:
    return _logps(_open(folder, trial).model, encoded, "Measuring the fused model", report)


def has_merge(adapters: Sequence[Adapter], updates: Mapping[str, Sequence[Update]]) -> bool:
    """Whether the outcome is another than that of one adapter."""
    return len(adapters) > 1 or any(group[0].share != 1.0 for group in updates.values())


def memory_needed(layout: ModelLayout, stored_bytes: int, *, dequantized: bool) -> int:
    """What measuring takes, in bytes."""
    if not (dequantized or backend.is_cpu()):
        return int(1.2 * stored_bytes) + 3 * KEPT_BYTES
    values = 0
    for name, shape in layout.shapes.items():
        packing = layout.packings.get(name.rpartition(".")[0])
        size = int(np.prod(shape, dtype=np.int64))
        values += size * 32 // packing.bits if packing and name.endswith(".weight") else size
    return int(1.2 * 4 * values) + 3 * KEPT_BYTES


def available_memory() -> int:
    """What this machine could give to one process, in bytes."""
    if not backend.is_cpu() and (device := backend.device_bytes()):
        return device * 3 // 4
    return backend.free_bytes() or backend.total_bytes() * 3 // 4


def compute_drift(adapted: Logps, base: Logps, fused: Logps) -> Drift:
    """From the log-probs of base + adapter, of the base and of the fused model."""
    rows = [
        [len(a), *map(np.sum, token_divergence(a, f)), *map(np.sum, token_divergence(a, b))]
        for a, b, f in zip(adapted, base, fused, strict=True)
    ]
    tokens, *sums = np.array(rows, np.float64).sum(axis=0)
    likely = [np.abs(a - f)[a > np.log(1e-6)].max() for a, f in zip(adapted, fused, strict=True)]
    kl_fused, same_fused, kl_base, same_base = (float(s / tokens) for s in sums)
    # Rounding may leave a sum below 0.
    kl_fused, kl_base = max(kl_fused, 0.0), max(kl_base, 0.0)
    return Drift(int(tokens), kl_fused, kl_base, same_fused, same_base, float(max(likely)))


def _open(folder: Path, trial: Trial) -> Base:
    return load_base(
        str(folder),
        trust_remote_code=trial.trust_remote_code,
        keep_quantized=not (trial.dequantized or backend.is_cpu()),
        adapter=trial.run,
    )


def _logps(model: Any, encoded: Sequence[EncodedPair], stage: str, report: Callback) -> Logps:
    """Of every token of the chosen responses, until KEPT_BYTES are full."""
    model.eval()
    logps_of_pairs: Logps = []
    size = 0
    for done, pair in enumerate(encoded, 1):
        ids = np.concatenate([pair.prompt, pair.chosen[:LONGEST]])
        logps = word_logps(model, ids, len(pair.prompt) - 1, make_prompt_cache(model))
        if not mx.isfinite(logps).all().item():
            if stage == BASE_STAGE:
                raise OrpoError(
                    f"The base gives NaN or infinite numbers for {pair.location}: "
                    f"{why_not_finite(model)}."
                )
            raise OrpoError(
                f"{stage}: the logits of {pair.location} are NaN or infinite. Is the adapter's "
                "share too large (--adapter FOLDER:SHARE), or was it trained on another base?"
            )
        logps_of_pairs.append(np.array(logps))
        size += logps_of_pairs[-1].nbytes
        report(Progress(stage, done, len(encoded)))
        if size > KEPT_BYTES:
            break
    return logps_of_pairs


def _merge(model: nn.Module, updates: Mapping[str, Sequence[Update]]) -> None:
    """Change the float32 weights of a model as several adapters want them together."""
    weights = dict(tree_flatten(model.parameters()))
    merged = [
        (name, mx.concatenate(list(fused_rows(weights[name], some))).reshape(weights[name].shape))
        for name, some in updates.items()
    ]
    model.load_weights(merged, strict=False)
