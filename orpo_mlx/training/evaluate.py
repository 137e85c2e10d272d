"""Metrics of a model on pairs. `pair_outputs` is the one forward of training and evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.config import EvaluateConfig
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.data.formats import PreferencePair, load_pairs
from orpo_mlx.model.adapters import apply_adapter, load_adapter_config
from orpo_mlx.objective.loss import OrpoLoss, orpo_loss
from orpo_mlx.training.metrics import Callback, Notice, Progress, mean
from orpo_mlx.training.path import BatchArrays, ForwardPath, arrays_of, fast_path, plain_path
from orpo_mlx.training.reading import reading_of
from orpo_mlx.training.run_folder import CONFIG, load_run_config
from orpo_mlx.training.self_check import choose_path
from orpo_mlx.training.setup import (
    build_encoder,
    encode_all,
    open_base,
    template_of,
    thinking_for,
)

EVALUATE_SPLITS = ("test", "valid")


class PairOutputs(NamedTuple):
    """What the model says of B pairs, float32 arrays of shape (B,)."""

    losses: OrpoLoss
    chosen_logps: mx.array  # mean per response token
    rejected_logps: mx.array


class Evaluation(NamedTuple):
    """Per-pair values of every metric, in the order of `pairs`."""

    values: dict[str, np.ndarray]  # each (N,)
    pairs: list[PreferencePair]

    def means(self) -> dict[str, float]:
        """Means over pairs; `saturated_pairs` is a count."""
        return summary(self.values)


class Comparison(NamedTuple):
    """A base on held-out pairs, and the same base with its adapter."""

    base: Evaluation
    adapter: Evaluation | None


def pair_outputs(path: ForwardPath, batch: BatchArrays, *, beta: float | mx.array) -> PairOutputs:
    """Loss and log-probs of a micro-batch; DESIGN: the mean over response tokens, per pair."""
    calls, targets, weights, nll_weights = batch
    logps = path.token_logps(calls, targets)
    chosen, rejected = mx.split(_weighted(weights, logps), 2)
    nll = None if nll_weights is None else -_weighted(nll_weights, logps)
    return PairOutputs(orpo_loss(chosen, rejected, beta, nll), chosen, rejected)


def _weighted(weights: mx.array, logps: mx.array) -> mx.array:
    """Means of each row; where a weight is 0, a log-prob of -inf is none of the row's."""
    return mx.where(weights > 0, weights * logps, 0.0).sum(axis=-1)


def pair_metrics(
    losses: OrpoLoss,
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    beta: float | mx.array,
) -> dict[str, mx.array]:
    """Every metric per pair under TRL's name, shape (B,); `saturated_pairs` is to be summed."""
    margins = chosen_logps - rejected_logps
    return {
        "loss": losses.loss,
        "nll_loss": losses.nll_loss,
        "log_odds_ratio": -losses.odds_ratio_loss,
        "log_odds_chosen": losses.log_odds,
        "rewards/chosen": beta * chosen_logps,
        "rewards/rejected": beta * rejected_logps,
        "rewards/accuracies": (margins > 0).astype(mx.float32),
        "rewards/margins": beta * margins,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        "saturated_pairs": losses.saturated.astype(mx.float32),
    }


def evaluate_encoded(
    path: ForwardPath,
    encoded: Sequence[EncodedPair],
    *,
    beta: float,
    nll_on: str,
    batch_size: int,
    emit: Callback = lambda event: None,
    stage: str = "Evaluating",
) -> dict[str, np.ndarray]:
    """Every metric of every pair, in the given order, without gradients."""
    model = path.model
    was_training = model.training
    model.eval()
    # Pairs of like length together: less padding.
    order = sorted(
        range(len(encoded)), key=lambda i: len(encoded[i].prompt) + len(encoded[i].chosen)
    )
    values: dict[str, np.ndarray] = {}
    try:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            arrays = arrays_of(path.batch(encoded, indices, nll_on))
            outputs = pair_outputs(path, arrays, beta=beta)
            metrics = pair_metrics(*outputs, beta)
            mx.eval(metrics)
            for name, array in metrics.items():
                values.setdefault(name, np.zeros(len(encoded)))[indices] = np.array(array)
            emit(Progress(stage, min(start + batch_size, len(order)), len(order)))
    finally:
        model.train(was_training)
    return values


def summary(values: dict[str, np.ndarray], prefix: str = "") -> dict[str, float]:
    """Means over pairs; `saturated_pairs` is a sum."""
    return {
        prefix + name: float(array.sum() if name == "saturated_pairs" else array.mean())
        for name, array in values.items()
    }


def evaluate(config: EvaluateConfig, emit: Callback = lambda event: None) -> Comparison:
    """Measure a base, and the base with its adapter, on held-out pairs.

    Raises OrpoError for data, model or adapter that cannot be used.
    """
    if config.adapter:
        load_adapter_config(config.adapter)
        config = _as_trained(config, config.adapter)
    pairs = load_pairs(
        config.data, splits=EVALUATE_SPLITS, reading=reading_of(config), split=config.split,
        subset=config.subset, revision=config.data_revision, drop_bad=config.bad_rows == "drop",
        tell=lambda text: emit(Notice(text)),
    )[: config.pairs]  # fmt: skip
    base = open_base(config, config.adapter)
    for text in base.notices:
        emit(Notice(text))
    template = template_of(config, config.adapter)
    encoder = build_encoder(
        base, template, thinking_for(template, pairs, emit),
        max_seq_length=config.max_seq_length, max_prompt_length=config.max_prompt_length,
    )  # fmt: skip
    encoded = encode_all(encoder, pairs, "held-out", emit)
    kept = {pair.place for pair in encoded}
    pairs = [pair for pair in pairs if pair.place in kept]
    settings: dict[str, Any] = {
        "beta": config.beta, "nll_on": config.nll_on, "batch_size": config.batch_size, "emit": emit,
    }  # fmt: skip
    path = choose_path(base, encoded, emit)
    before = Evaluation(evaluate_encoded(path, encoded, stage="Base", **settings), pairs)
    if config.adapter is None:
        return Comparison(before, None)
    apply_adapter(base.model, config.adapter)
    path = choose_path(base, encoded, emit)
    after = Evaluation(evaluate_encoded(path, encoded, stage="Adapter", **settings), pairs)
    return Comparison(before, after)


def _as_trained(config: EvaluateConfig, adapter: Path) -> EvaluateConfig:
    """The settings with the loss and lengths of the adapter's run, where none were given."""
    stored = load_run_config(adapter) if (adapter / CONFIG).is_file() else {}
    names = {"beta", "nll_on", "max_seq_length", "max_prompt_length"} - config.model_fields_set
    return config.model_copy(update={n: stored[n] for n in names if n in stored})


def quantization_drift(
    quantized: nn.Module,
    adapter: Path,
    encoded: Sequence[EncodedPair],
    trained: dict[str, np.ndarray],
    layout: str,  # of the path that these were computed on
) -> tuple[float, float]:
    """Mean and largest change of a response's mean log-prob when the base stays quantized.

    `trained` are the metrics of the same pairs on the dequantized base with the same adapter.
    """
    apply_adapter(quantized, adapter)
    path, _ = (
        fast_path(quantized) if layout == "tree" else (plain_path(quantized, layout=layout), "")
    )
    values = evaluate_encoded(path, encoded, beta=0.0, nll_on="response", batch_size=1)
    names = ("logps/chosen", "logps/rejected")
    drifts = [float(d) for n in names for d in np.abs(values[n] - trained[n])]
    return mean(drifts), max(drifts)
