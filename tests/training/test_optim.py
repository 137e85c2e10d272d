"""AdamW against its formulas in float64 and against torch, clipping, schedules, half precision."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.training.optim import Optimizer, learning_rate_at

STEPS = 12
SHAPES = {"weight": (6, 4), "bias": (6,)}


class Model(nn.Module):
    def __init__(self, start: dict[str, np.ndarray], dtype: mx.Dtype = mx.float32):
        super().__init__()
        for name, value in start.items():
            setattr(self, name, mx.array(value).astype(dtype))


def random_arrays(count: int) -> list[dict[str, np.ndarray]]:
    """Arrays of the model's shapes; every other one is large enough to be clipped."""
    random = np.random.default_rng(0)
    return [
        {
            n: (random.normal(size=s) * (3 if i % 2 else 0.01)).astype(np.float32)
            for n, s in SHAPES.items()
        }
        for i in range(count)
    ]


def rate(step: int) -> float:
    return 0.01 * (step + 1) / STEPS


def trained(start: dict[str, np.ndarray], gradients: list[Any], decay: float, clip: float) -> Any:
    model = Model(start)
    optimizer = Optimizer(model, weight_decay=decay, max_grad_norm=clip, decay_all=True)
    norms = [
        optimizer.update({n: mx.array(g) for n, g in gradient.items()}, rate(step))
        for step, gradient in enumerate(gradients)
    ]
    return {n: np.array(model[n]) for n in SHAPES}, norms


def clipped(gradient: dict[str, np.ndarray], clip: float) -> tuple[dict[str, np.ndarray], float]:
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
    factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
    return {n: g.astype(np.float64) * factor for n, g in gradient.items()}, norm


def reference(start: Any, gradients: list[Any], decay: float, clip: float) -> Any:
    """Loshchilov and Hutter 2019, algorithm 2, with torch's defaults, in float64."""
    weights = {n: w.astype(np.float64) for n, w in start.items()}
    m, v, norms = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0), []
    for step, raw in enumerate(gradients):
        gradient, norm = clipped(raw, clip)
        norms.append(norm)
        for n, g in gradient.items():
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g**2
            mean, square = m[n] / (1 - 0.9 ** (step + 1)), v[n] / (1 - 0.999 ** (step + 1))
            weights[n] = weights[n] * (1 - rate(step) * decay)
            weights[n] = weights[n] - rate(step) * mean / (np.sqrt(square) + 1e-8)
    return weights, norms


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_steps_equal_the_formulas_in_float64(decay: float, clip: float) -> None:
    start, *gradients = random_arrays(STEPS + 1)
    weights, norms = trained(start, gradients, decay, clip)
    expected, expected_norms = reference(start, gradients, decay, clip)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-6)
    for name in SHAPES:
        # float32; 1 - 0.999^t alone loses three digits
        np.testing.assert_allclose(weights[name], expected[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parity
def test_steps_equal_torch() -> None:
    import torch

    start, *gradients = random_arrays(STEPS + 1)
    weights, _ = trained(start, gradients, decay=0.1, clip=1.0)
    parameters = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.1)
    for step, gradient in enumerate(gradients):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(weights[name], parameter.detach().numpy(), rtol=1e-5, atol=2e-6)


def test_half_precision_weights_are_trained_as_float32_copies() -> None:
    """bfloat16 cannot say 1 + 1e-4; a hundred such steps it can."""
    model = Model({n: np.ones(s, np.float32) for n, s in SHAPES.items()}, mx.bfloat16)
    optimizer = Optimizer(model, weight_decay=0.0, max_grad_norm=0.0)
    gradient = {n: -mx.ones(s, mx.bfloat16) for n, s in SHAPES.items()}
    for _ in range(100):
        optimizer.update(gradient, 1e-4)
    assert model.weight.dtype == mx.bfloat16
    assert mx.allclose(model.weight, mx.array(1.01), atol=2**-8)  # bfloat16's spacing at 1
    assert model.weight[0, 0].item() > 1
    assert mx.allclose(optimizer.weights["weight"], mx.array(1.01), atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    start, gradient, _ = random_arrays(3)
    model = Model(start)
    optimizer = Optimizer(model, weight_decay=0.1, max_grad_norm=1.0)
    gradient["bias"][2] = bad
    assert not math.isfinite(optimizer.update({n: mx.array(g) for n, g in gradient.items()}, 0.1))
    for name, value in start.items():
        np.testing.assert_array_equal(np.array(model[name]), value)
    assert optimizer.state()[1]["step"].item() == 0


def test_a_restored_optimizer_goes_on_as_the_first() -> None:
    start, *gradients = random_arrays(STEPS + 1)
    steps = [{n: mx.array(g) for n, g in gradient.items()} for gradient in gradients]
    whole, first, second = (
        Optimizer(Model(start), weight_decay=0.1, max_grad_norm=1.0) for _ in range(3)
    )
    for step, gradient in enumerate(steps):
        whole.update(gradient, rate(step))
        if step < 5:
            first.update(gradient, rate(step))
    second.restore(*first.state())
    for step, gradient in enumerate(steps[5:], start=5):
        second.update(gradient, rate(step))
    for got, expected in zip(second.state(), whole.state(), strict=True):
        assert got.keys() == expected.keys()
        assert all(mx.array_equal(got[name], expected[name]) for name in expected)


def rates(**changes: Any) -> list[float]:
    settings = {"peak": 1.0, "steps": 10, "warmup": 0.2, "schedule": "cosine"} | changes
    return [learning_rate_at(step, **settings) for step in range(settings["steps"])]


def test_the_rate_warms_up_linearly_then_follows_the_schedule() -> None:
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates() == pytest.approx([0.5, 1.0, *cosine])
    assert rates(schedule="linear") == pytest.approx([0.5, 1.0, *(1 - k / 8 for k in range(8))])
    assert rates(schedule="constant") == pytest.approx([0.5] + [1.0] * 9)
    assert rates(warmup=0.0, schedule="linear") == pytest.approx([1 - k / 10 for k in range(10)])


def test_warm_up_is_a_share_below_one_and_a_number_of_steps_above() -> None:
    assert rates(warmup=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates(warmup=0.4) == rates(warmup=4)
    assert rates(warmup=1)[:2] == pytest.approx([1.0, 1.0])
    assert rates(warmup=50) == pytest.approx([(k + 1) / 10 for k in range(10)])
