"""Weights of rows, and SFT rows next to pairs and alone, against float64."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.events import Listeners
from orpo_mlx.training.checkpoint import fingerprint
from orpo_mlx.training.optim import Optimizer
from orpo_mlx.training.plan import Plan
from orpo_mlx.training.step import TrainStep, loss_scale
from tests import tiny, twin
from tests.training.references import ATOL, kindred_pairs, path_through, random_pairs

pytestmark = pytest.mark.touchy
BETA = 0.3
WEIGHTS = (0.0, 0.5, 2.0, 1.0)
NOTHING = np.zeros(0, np.int32)


def weighted(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    return [pair._replace(weight=WEIGHTS[n % 4]) for n, pair in enumerate(pairs)]


def sft_rows(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    return [pair._replace(rejected=NOTHING) for pair in pairs]


PAIRS = kindred_pairs()[:4]
OTHERS = random_pairs([(12, 7, 3), (2, 1, 1), (40, 5, 9), (1, 20, 4)])
SETS = {
    "weighted pairs": weighted(PAIRS) + weighted(OTHERS),
    "SFT rows": sft_rows(OTHERS + PAIRS),
    "pairs and SFT rows": PAIRS + sft_rows(OTHERS),
    "all of it": weighted(PAIRS[:2] + sft_rows(PAIRS[2:]) + OTHERS[:2] + sft_rows(OTHERS[2:])),
}


def mean_logp(model: nn.Module, prompt: np.ndarray, response: np.ndarray, start: int) -> mx.array:
    """The mean log-prob of the tokens from `start` on, of one row alone by the model's own call."""
    ids = mx.array(np.concatenate([prompt, response]))
    logits = model(ids[None, :-1])[0]
    logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logps, ids[1:, None], axis=-1)[max(start - 1, 0) :].mean()


def loss_of(model: nn.Module, row: EncodedPair, nll_on: str) -> tuple[mx.array, mx.array]:
    """Loss without its weight and likelihood part of one row, from the formulas of the paper."""
    chosen = mean_logp(model, row.prompt, row.chosen, len(row.prompt))
    start = 0 if nll_on == "prompt+response" else len(row.prompt)
    nll = -mean_logp(model, row.prompt, row.chosen, start)
    if row.is_sft:
        return nll, nll
    rejected = mean_logp(model, row.prompt, row.rejected, len(row.prompt))
    odds = [p - mx.log(1 - mx.power(np.e, p)) for p in (chosen, rejected)]
    return nll + BETA * mx.log(1 + mx.power(np.e, odds[1] - odds[0])), nll


@cache
def in_float64(name: str, nll_on: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and gradient of a step that takes every row of a set once."""
    model, data = trained_model(), SETS[name]
    with twin.in_float64(model):

        def total(parameters: Any) -> tuple[mx.array, list[mx.array]]:
            model.update(parameters)
            parts = [loss_of(model, row, nll_on) for row in data]
            weights = [row.weight for row in data]
            loss = sum(w * part[0] for w, part in zip(weights, parts, strict=True)) / len(data)
            return loss, [part[1] for part in parts]

        (loss, nlls), gradient = mx.value_and_grad(total)(model.trainable_parameters())
        mx.eval(loss, nlls, gradient)
        assert loss.dtype == mx.float64
        values = {"loss": loss.item()}
        for metric, is_sft in (("nll_loss", False), ("nll_loss/sft", True)):
            own = [n.item() for n, row in zip(nlls, data, strict=True) if row.is_sft == is_sft]
            values |= {metric: float(np.mean(own))} if own else {}
        return values, {name: np.array(value) for name, value in tree_flatten(gradient)}


def trained_model() -> nn.Module:
    """A tiny llama whose last block is trained."""
    model, _ = tiny.build_model("llama")
    model.freeze()
    model.layers[-1].unfreeze()
    return model.train()


class KeepGradient(Optimizer):
    """Keeps the gradient that it is given, and updates nothing."""

    gradient: Any = None

    def update(self, gradients: Any, learning_rate: float) -> float:
        self.gradient = gradients
        return 1.0


def step_on(
    data: Sequence[EncodedPair], size: int, kind: str, nll_on: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and gradient of one step that takes every row once."""
    model = trained_model()
    config = TrainConfig(
        model="-",
        data=["-"],
        output=Path("-"),
        beta=BETA,
        nll_on=nll_on,
        steps=1,
        batch_size=len(data),
        micro_batch_size=size,
    )
    path = path_through(model, kind)
    plan = Plan(data, config, rounded=kind == "rounded", layout=path.layout)
    optimizer = KeepGradient(model, weight_decay=0.0, max_grad_norm=0.0)
    step = TrainStep(config, data, plan, path, optimizer, Listeners([]), steps=1, compiled=False)
    metrics = step.take(0)
    assert metrics is not None
    assert sorted(np.concatenate(plan.step(0)).tolist()) == list(range(len(data)))
    return metrics, {name: np.array(value) for name, value in tree_flatten(optimizer.gradient)}


@pytest.mark.parametrize(
    ("name", "kind", "nll_on"),
    [
        *((name, kind, "response") for name in SETS for kind in ("fast", "rounded", "plain")),
        ("all of it", "rows", "response"),
        ("all of it", "fast", "prompt+response"),
    ],
)
def test_loss_and_gradient_are_those_of_float64_over_any_micro_batches(
    name: str, kind: str, nll_on: str
) -> None:
    expected, gradient = in_float64(name, nll_on)
    largest = max(np.abs(value).max() for value in gradient.values())
    for size in (8, 4, 2):  # 1, 2 and 4 micro-batches; rounded ones are cut by shape, too
        metrics, got = step_on(SETS[name], size, kind, nll_on)
        for metric in ("loss", "nll_loss", "nll_loss/sft"):
            assert metrics.get(metric) == pytest.approx(expected.get(metric), abs=ATOL)
        assert ("rewards/accuracies" in metrics) == ("nll_loss" in expected)
        assert got.keys() == gradient.keys()
        for tensor, value in gradient.items():
            # Sums of float32 over up to 60 tokens a row, in another order; 4e-6 here.
            np.testing.assert_allclose(got[tensor], value, rtol=0, atol=2e-5 * largest)


def test_a_float16_base_is_scaled_less_under_large_weights() -> None:
    pairs, all_of_them = random_pairs([(4, 16, 2)] * 4), [np.arange(4)]
    heavy = [pair._replace(weight=w) for pair, w in zip(pairs, (0, 1, 32, 7), strict=True)]
    assert loss_scale(pairs, all_of_them, half=True) == 64
    assert loss_scale(heavy, all_of_them, half=True) == 2
    assert loss_scale(heavy, all_of_them, half=False) == 1


def test_the_weights_of_rows_are_part_of_the_fingerprint_where_there_are_any() -> None:
    plain = random_pairs()
    assert fingerprint(plain) == fingerprint([pair._replace(weight=1.0) for pair in plain])
    others = [weighted(plain), sft_rows(plain), plain]
    assert len({fingerprint(data) for data in others}) == 3
