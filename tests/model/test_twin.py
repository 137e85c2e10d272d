"""The float64 twin computes in float64 what the models compute, with its gradient."""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.objective.loss import orpo_loss
from tests import twin
from tests.model.comparison import BETA, errors_of, judge, own_logps, through_the_tree
from tests.model.family_cases import PAIRS, model_of

X = np.random.default_rng(0).standard_normal((4, 6))
STEP = 1e-5
# All that models compute with is in one of these.
SOME: list[tuple[str, int | None]] = [
    ("gemma3_text", None), ("gemma4_text", None), ("starcoder2", None), ("gpt_oss", None),
    ("deepseek_v3", None), ("minicpm3", None), ("lfm2", None), ("qwen3_next", None),
    ("falcon_h1", None), ("llama", 4), ("mixtral", 4),
]  # fmt: skip
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def doubled(values: np.ndarray) -> mx.array:
    return mx.array(values, dtype=mx.float64)


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "exp": (twin.exp, np.exp),
    "sigmoid": (twin.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "logaddexp": (lambda x: twin.logaddexp(x, 2 * x), lambda x: np.logaddexp(x, 2 * x)),
    "logsumexp": (lambda x: twin.logsumexp(x, axis=-1), lambda x: np.log(np.exp(x).sum(-1))),
    "erf": (twin.erf, np.vectorize(math.erf)),
    "softmax": (
        lambda x: twin.softmax(x, axis=-1),
        lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    ),
    "rms_norm": (
        lambda x: twin.rms_norm(x, x[0], 1e-5),
        lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * x[0],
    ),
    "layer_norm": (
        lambda x: twin.layer_norm(x, x[0], x[1], 1e-5),
        lambda x: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * x[0] + x[1]
        ),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_numpy(name: str) -> None:
    ours, theirs = FUNCTIONS[name]
    with mx.stream(mx.cpu):
        np.testing.assert_allclose(np.array(ours(doubled(X))), theirs(X), **CLOSE)
        far = np.array([[-30.0, 5.9, 0.3, 30.0]] * 2)
        np.testing.assert_allclose(np.array(ours(doubled(far))), theirs(far), **CLOSE)


@pytest.mark.parametrize(("family", "bits"), SOME)
def test_the_gradient_is_the_slope(family: str, bits: int | None) -> None:
    model, gradient = model_of(family, bits), judge(family, bits).twin.gradient
    norm = math.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    with twin.in_float64(model):
        weights = dict(tree_flatten(model.trainable_parameters()))

        def loss(size: float) -> float:
            moved = [(n, w + doubled(size / norm * gradient[n])) for n, w in weights.items()]
            model.update(tree_unflatten(moved))
            means = mx.stack([logps.mean() for logps in own_logps(model, PAIRS)])
            return orpo_loss(means[0::2], means[1::2], BETA).loss.mean().item()

        # Over this step float32, anywhere in between, would leave two digits of it.
        slope = (loss(STEP) - loss(-STEP)) / (2 * STEP)
    assert slope == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(("family", "bits"), SOME)
def test_the_tree_in_float64_is_the_twin(family: str, bits: int | None) -> None:
    model = model_of(family, bits)
    with twin.in_float64(model):
        errors = errors_of(through_the_tree(model), judge(family, bits).twin)
    assert errors.logps < 1e-12
    assert errors.gradient < 2e-7  # a batch's weights, 1 by the response's length, are float32


def test_a_model_is_as_before() -> None:
    model, before = model_of("llama", None), mx.fast.rms_norm
    weights = tree_flatten(model.parameters())
    with twin.in_float64(model):
        assert mx.float32 == mx.float64 != weights[0][1].dtype
        assert mx.fast.rms_norm is not before
    assert mx.fast.rms_norm is before
    assert mx.float32 == weights[0][1].dtype
    for (_, one), (_, other) in zip(weights, tree_flatten(model.parameters()), strict=True):
        assert one is other


@pytest.mark.parametrize(
    ("plain", "allowed"), [(0.0, 2e-6), (4e-7, 2e-6), (1e-6, 4e-6), (2e-5, 8e-5), (1e-3, 1e-4)]
)
def test_what_is_allowed_is_four_times_the_plain_error_within_bounds(
    plain: float, allowed: float
) -> None:
    assert twin.allowed_error(plain) == pytest.approx(allowed)
