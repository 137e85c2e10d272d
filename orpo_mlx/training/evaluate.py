"""Metrics of a model on pairs, by the forward of outputs.py that training uses too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.config.train import EvaluateConfig
from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice, Progress
from orpo_mlx.loading import (
    build_encoder,
    check_ids,
    encode_all,
    open_base,
    template_of,
    thinking_for,
)
from orpo_mlx.model.adapters import apply_adapter, load_adapter_config
from orpo_mlx.model.base import Base, why_not_finite
from orpo_mlx.model.layer_hooks import evaluating
from orpo_mlx.read_options import reading_of
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.run_folder.settings import load_run_config
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path, plain_path
from orpo_mlx.training.metrics.log import mean
from orpo_mlx.training.outputs import mean_metrics, pair_metrics, pair_outputs
from orpo_mlx.training.self_check import choose_path

EVALUATE_SPLITS = ("test", "valid")
UNWEIGHTED = "Held-out metrics count each pair once, whatever its weight."


class Evaluation(NamedTuple):
    """Per-pair values of every metric, in the order of `pairs`."""

    values: dict[str, np.ndarray]  # each (N,)
    pairs: list[PreferencePair]

    def means(self) -> dict[str, float]:
        """Means over pairs; `saturated_pairs` is a count."""
        return mean_metrics(self.values)


class Comparison(NamedTuple):
    """A base on held-out pairs, and the same base with its adapter."""

    base: Evaluation
    adapter: Evaluation | None


def evaluate_encoded(
    path: ForwardPath,
    encoded: Sequence[EncodedPair],
    *,
    beta: float,
    nll_on: str,
    batch_size: int,
    report: Callback = lambda event: None,
    stage: str = "Evaluating",
) -> dict[str, np.ndarray]:
    """Every metric of every pair, in the given order, without gradients."""
    # Pairs of similar length together: less padding.
    order = sorted(
        range(len(encoded)), key=lambda i: len(encoded[i].prompt) + len(encoded[i].chosen)
    )
    values: dict[str, np.ndarray] = {}
    with evaluating(path.model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            arrays = arrays_of(path.batch(encoded, indices, nll_on))
            outputs = pair_outputs(path, arrays, beta=beta)
            metrics = pair_metrics(*outputs, beta)
            mx.eval(metrics)
            for name, array in metrics.items():
                values.setdefault(name, np.zeros(len(encoded)))[indices] = np.array(array)
            report(Progress(stage, min(start + batch_size, len(order)), len(order)))
    return values


def evaluate(config: EvaluateConfig, report: Callback = lambda event: None) -> Comparison:
    """Measure a base, and the base with its adapter, on held-out pairs.

    Raises OrpoError for data, model or adapter that cannot be used.
    """
    if config.adapter:
        load_adapter_config(config.adapter)
        config = _as_trained(config, config.adapter)
    drop_bad = config.bad_rows == "drop"
    pairs = load_pairs(
        config.data,
        splits=EVALUATE_SPLITS,
        reading=reading_of(config),
        split=config.split,
        subset=config.subset,
        revision=config.data_revision,
        drop_bad=drop_bad,
        log=lambda text: report(Notice(text)),
    )[: config.pairs]
    if any(pair.weight != 1 for pair in pairs):
        report(Notice(UNWEIGHTED))
    base = open_base(config, config.adapter)
    for text in base.notices:
        report(Notice(text))
    template = template_of(config, config.adapter)
    encoder = build_encoder(
        base,
        template,
        thinking_for(template, pairs, report),
        config,
    )
    encoded = encode_all(encoder, pairs, "held-out", report, drop_bad=drop_bad)
    check_ids(base, encoded)
    kept = {pair.location for pair in encoded}
    pairs = [pair for pair in pairs if pair.location in kept]
    settings: dict[str, Any] = {
        "beta": config.beta,
        "nll_on": config.nll_on,
        "batch_size": config.batch_size,
        "report": report,
    }
    path = choose_path(base, encoded, report)
    before = Evaluation(evaluate_encoded(path, encoded, stage="Base", **settings), pairs)
    _check_finite("The base", before, base)
    if config.adapter is None:
        return Comparison(before, None)
    apply_adapter(base.model, config.adapter)
    path = choose_path(base, encoded, report)
    after = Evaluation(evaluate_encoded(path, encoded, stage="Adapter", **settings), pairs)
    _check_finite("The base with its adapter", after, base)
    return Comparison(before, after)


def _check_finite(what: str, evaluation: Evaluation, base: Base) -> None:
    """Raise OrpoError for numbers that are none, with pairs and the reason."""
    bad = np.flatnonzero(~np.isfinite(evaluation.values["loss"]))
    if len(bad):
        locations = ", ".join(evaluation.pairs[int(row)].location for row in bad[:3])
        raise OrpoError(
            f"{what} gives NaN or infinite numbers for {len(bad)} of {len(evaluation.pairs)} pairs "
            f"({locations}{', ...' * (len(bad) > 3)}): {why_not_finite(base.model)}."
        )


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
    path: ForwardPath,  # on which these were computed
) -> tuple[float, float]:
    """Mean and largest change of a response's mean log-prob when the base stays quantized.

    `trained` are the metrics of the same pairs on the dequantized base with the same adapter.
    """
    apply_adapter(quantized, adapter)
    if path.layout == "tree":
        same, _ = fast_path(quantized, form=path.form)
    else:
        same = plain_path(quantized, layout=path.layout, form=path.form)
    values = evaluate_encoded(same, encoded, beta=0.0, nll_on="response", batch_size=1)
    names = ("logps/chosen", "logps/rejected")
    drifts = [float(d) for n in names for d in np.abs(values[n] - trained[n])]
    return mean(drifts), max(drifts)
