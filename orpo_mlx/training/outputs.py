"""One micro-batch to log-probs, loss and metrics: the one forward of training and evaluation."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.objective.loss import OrpoLoss, orpo_loss
from orpo_mlx.training.forward_path import BatchArrays, ForwardPath


class PairOutputs(NamedTuple):
    """The model's outputs for B pairs, float32 arrays of shape (B,).

    Of an SFT row `rejected_logps` is 0 and only the loss and its likelihood part mean something.
    """

    losses: OrpoLoss
    chosen_logps: mx.array  # mean per response token
    rejected_logps: mx.array


def pair_outputs(path: ForwardPath, batch: BatchArrays, *, beta: float | mx.array) -> PairOutputs:
    """Loss and log-probs of a micro-batch: means over response tokens, for each pair."""
    calls, targets, weights, nll_weights, paired = batch
    logps = path.token_logps(calls, targets)
    chosen, rejected = mx.split(_weighted(weights, logps), 2)
    nll = None if nll_weights is None else -_weighted(nll_weights, logps)
    return PairOutputs(orpo_loss(chosen, rejected, beta, nll, paired), chosen, rejected)


def _weighted(weights: mx.array, logps: mx.array) -> mx.array:
    """Means of each row; where a weight is 0, a log-prob of -inf does not count."""
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


def mean_metrics(values: dict[str, np.ndarray], prefix: str = "") -> dict[str, float]:
    """Means over pairs; `saturated_pairs` is a sum."""
    return {
        prefix + name: float(array.sum() if name == "saturated_pairs" else array.mean())
        for name, array in values.items()
    }


def step_metrics(
    values: dict[str, np.ndarray],  # each (N,)
    paired: np.ndarray,  # (N,) bool, False for SFT rows
) -> dict[str, float]:
    """The loss over all rows of a step; the other metrics over its pairs, if it has any, and the
    likelihood part over its SFT rows as `nll_loss/sft`, if it has any."""
    if paired.all():
        return mean_metrics(values)
    metrics = mean_metrics({"loss": values["loss"]})
    metrics["nll_loss/sft"] = float(values["nll_loss"][~paired].mean())
    of_pairs = {name: array[paired] for name, array in values.items() if name != "loss"}
    return metrics | (mean_metrics(of_pairs) if paired.any() else {})
