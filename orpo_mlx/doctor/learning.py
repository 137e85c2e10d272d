"""Ten steps of training on a tiny base: the loss falls, and what is saved is what was trained."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.doctor import toys
from orpo_mlx.doctor.verdict import FAILED, OK, REPORT, SKIPPED, Check
from orpo_mlx.events import Event, Notice, RowCounts
from orpo_mlx.loading import build_encoder, encode_all, open_base, template_of
from orpo_mlx.model.mlx_lm_api import load_by_mlx_lm
from orpo_mlx.objective.logps import token_logps
from orpo_mlx.run_folder.folder import METRICS
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.log import load_metrics

STEPS, PAIRS = 10, 8
HELD_OUT = "held_out.jsonl"
FALL = 0.9  # the held-out loss after training, as a share of that before, is at most this
# Float32, means over sums of 40 terms in another order and in other shapes.
TOLERANCE = 1e-4


def check_training(folder: Path) -> Check:
    """Ten steps lower the loss by a tenth, without a warning."""
    base, data = folder / "base", folder / "pairs.jsonl"
    toys.save_base(base)
    toys.save_pairs(data, PAIRS)
    toys.save_pairs(folder / HELD_OUT, PAIRS, start=PAIRS)
    events: list[Event] = []
    train(_config(folder), [events.append])
    rows = load_metrics(folder / "run" / METRICS)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    before, after = losses[0], losses[-1]
    steps = sum("loss" in row for row in rows)
    detail = f"{steps} steps took the loss from {before:.3f} to {after:.3f}"
    if steps != STEPS or not after <= FALL * before:
        wanted = f"{STEPS} steps should take it under {FALL * before:.3f}"
        return Check("training", FAILED, f"{detail}; {wanted}", REPORT)
    warnings = [event.text for event in events if isinstance(event, Notice) and event.warning]
    warnings += [what for event in events if isinstance(event, RowCounts) for _, what in event.rows]
    if warnings:
        return Check("training", FAILED, f"{detail}; it warned: {' '.join(warnings)}", REPORT)
    return Check("training", OK, detail)


def check_adapter(folder: Path) -> Check:
    """mlx_lm.load gives back the model that was validated at the end of the training."""
    run = folder / "run"
    if not (run / "adapters.safetensors").is_file():
        return Check("adapter", SKIPPED, "the training left none")
    (trained,) = [
        row for row in load_metrics(run / METRICS) if row["step"] == STEPS and "eval_loss" in row
    ]
    model, _ = load_by_mlx_lm(str(folder / "base"), adapter_path=str(run))
    model.eval()
    pairs = _encoded(folder)
    gaps = []
    for name in ("chosen", "rejected"):
        loaded = [_mean_logp(model, p.prompt, getattr(p, name)) for p in pairs]
        gaps.append(abs(float(np.mean(loaded)) - trained[f"eval_logps/{name}"]))
    # numpy's maximum: NaN if any is.
    worst = float(np.max(gaps))
    detail = f"loaded by mlx_lm, its log-probs differ by {worst:.1e} (allowed {TOLERANCE:g})"
    if not worst <= TOLERANCE:
        return Check("adapter", FAILED, detail, REPORT)
    return Check("adapter", OK, detail)


def _config(folder: Path) -> TrainConfig:
    data, held_out = [str(folder / "pairs.jsonl")], [str(folder / HELD_OUT)]
    return TrainConfig(
        model=str(folder / "base"), data=data, valid_data=held_out, output=folder / "run",
        keep_quantized=True, steps=STEPS, batch_size=2, learning_rate=2e-2, rank=4, alpha=8.0,
        eval_every=0, save_every=0,
    )  # fmt: skip


def _encoded(folder: Path) -> list[EncodedPair]:
    config = _config(folder)
    encoder = build_encoder(open_base(config), template_of(config), thinking=False)
    return encode_all(encoder, load_pairs(config.valid_data), "training", lambda event: None)


def _mean_logp(model: nn.Module, prompt: np.ndarray, response: np.ndarray) -> float:
    """The mean log-prob of a response's tokens by the model's own call."""
    ids = mx.array(np.concatenate([prompt, response]))
    logits = model(ids[None, :-1])[0, len(prompt) - 1 :]
    return float(np.array(token_logps(logits, ids[len(prompt) :])).mean())
