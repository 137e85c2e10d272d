"""The gated delta rule in chunks against a loop over tokens in float64, on keys that are hard."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.gated_delta import compute_g, compute_lower_bound_g, gated_delta_ops

from orpo_mlx.model.recurrent.gated_delta import CHUNK, gated_delta, log_decay
from tests.twin import CAP, allowed_error

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


HEADS, GROUPS, WIDTH, HEIGHT = 4, 2, 16, 8
Inputs = dict[str, np.ndarray]
Rule = Callable[..., tuple[mx.array, mx.array]]


def inputs(tokens: int = 110, *, channels: bool = False, seed: int = 0) -> Inputs:
    """Queries, keys, values, log decays, rates and a state as trained layers have them."""
    random = np.random.default_rng(seed)
    groups = HEADS if channels else GROUPS
    shape = (1, tokens, HEADS, WIDTH) if channels else (1, tokens, HEADS)
    return {
        "q": unit(random.normal(size=(1, tokens, groups, WIDTH))),
        "k": unit(random.normal(size=(1, tokens, groups, WIDTH))),
        "v": random.normal(size=(1, tokens, HEADS, HEIGHT)),
        "log_g": -np.exp(random.normal(size=shape) - 2),
        "beta": 1 / (1 + np.exp(-random.normal(size=(1, tokens, HEADS)))),
        "state": 0.3 * random.normal(size=(1, HEADS, HEIGHT, WIDTH)),
    }


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def one_key(given: Inputs) -> None:
    """A run of one token, over more than a chunk."""
    given["k"][:, 20 : 20 + CHUNK + 30] = given["k"][:, 20:21]


def every_other_key(given: Inputs) -> None:
    given["k"][:, ::2] = given["k"][:, :1]


def alike(given: Inputs) -> None:
    """Keys as silu leaves them: a mean cosine of a half."""
    given["k"] = unit(np.maximum(np.random.default_rng(1).normal(size=given["k"].shape), 0.02))


def kept_and_written(given: Inputs) -> None:
    """Nearly nothing decays, and every token is written in full."""
    one_key(given)
    given["beta"][:], given["log_g"][:] = 0.99, np.log(0.999)


def overwritten(given: Inputs) -> None:
    """Rates above 1, as where negative eigenvalues are allowed: a repeated key alternates."""
    one_key(given)
    given["beta"][:] = 1.9


def forgotten(given: Inputs) -> None:
    """Decays that are 0 in float32, between tokens that hardly decay."""
    given["log_g"][:] = -0.01
    given["log_g"][:, 5::7] = -200.0
    given["log_g"][:, 70:90] = -1e4


HARD: dict[str, Callable[[Inputs], None]] = {
    f.__name__: f for f in (one_key, every_other_key, alike, kept_and_written, forgotten)
}


def loop(
    q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """Token by token, in the type of what is given."""
    repeats = v.shape[2] // k.shape[2]
    q, k = mx.repeat(q, repeats, axis=2), mx.repeat(k, repeats, axis=2)
    g = mx.power(np.e, log_g if log_g.ndim == 4 else log_g[..., None])
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None]
        missing = v[:, t] - (state * k[:, t, :, None]).sum(axis=-1)
        state = state + (beta[:, t, :, None] * missing)[..., None] * k[:, t, :, None]
        outputs.append((state * q[:, t, :, None]).sum(axis=-1))
    return mx.stack(outputs, axis=1), state


def mlx_lm(q: Any, k: Any, v: Any, log_g: Any, beta: Any, state: Any) -> tuple[mx.array, mx.array]:
    return gated_delta_ops(q, k, v, mx.exp(log_g), beta, state)


def computed(rule: Rule, given: Inputs, dtype: mx.Dtype = mx.float32) -> list[np.ndarray]:
    """Outputs, last state, and the gradients of a weighted sum of both by all that is given."""
    random = np.random.default_rng(2)
    shapes = given["v"].shape, given["state"].shape
    with mx.stream(mx.cpu):
        weights = [mx.array(random.normal(size=shape), dtype=dtype) for shape in shapes]
        arrays = [mx.array(x, dtype=dtype) for x in given.values()]

        def total(*arrays: mx.array) -> tuple[mx.array, Any]:
            values = rule(*arrays)
            return sum((w * x).sum() for w, x in zip(weights, values, strict=True)), values

        (_, values), gradients = mx.value_and_grad(total, argnums=range(6))(*arrays)
        mx.eval(values, gradients)
    return [np.array(x, dtype=np.float64) for x in (*values, *gradients)]


def errors(values: list[np.ndarray], right: list[np.ndarray]) -> list[float]:
    """Relative, of each array; NaN and infinity are infinitely far."""
    parts = zip(values, right, strict=True)
    distances = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in parts]
    return [float(d) if np.isfinite(d) else np.inf for d in distances]


def assert_right(given: Inputs) -> None:
    right = computed(loop, given, mx.float64)
    allowed = allowed_error(max(errors(computed(mlx_lm, given), right)))
    assert max(errors(computed(gated_delta, given), right)) <= allowed


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 7, CHUNK, CHUNK + 1])
def test_chunks_equal_the_loop(tokens: int, channels: bool) -> None:
    assert_right(inputs(tokens, channels=channels))


@pytest.mark.parametrize("channels", [False, True])
def test_spans_of_several_chunks(channels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orpo_mlx.model.recurrent.gated_delta.SPAN", 32)
    monkeypatch.setattr("orpo_mlx.model.recurrent.gated_delta.CHUNK", 16)
    assert_right(inputs(75, channels=channels))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("hard", HARD)
def test_hard_keys_and_decays(hard: str, channels: bool) -> None:
    given = inputs(channels=channels)
    HARD[hard](given)
    assert_right(given)


@pytest.mark.parametrize("channels", [False, True])
def test_rates_above_1(channels: bool) -> None:
    given = inputs(channels=channels)
    overwritten(given)
    assert_right(given)


def test_powers_instead_of_halves_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def powers(a: mx.array) -> mx.array:
        inverse, power = mx.eye(a.shape[-1]) - a, a
        for _ in range(a.shape[-1].bit_length() - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        return inverse

    monkeypatch.setattr("orpo_mlx.model.recurrent.gated_delta._inverse", powers)
    assert_right(inputs())
    given = inputs()
    kept_and_written(given)
    right = computed(loop, given, mx.float64)
    assert not max(errors(computed(gated_delta, given), right)) <= 10 * CAP


def test_states_go_in_and_come_out() -> None:
    given = {name: mx.array(x, dtype=mx.float32) for name, x in inputs(100).items()}
    whole, last = gated_delta(**given)
    state, outputs = given.pop("state"), []
    for cut in (slice(0, 37), slice(37, 38), slice(38, 100)):
        y, state = gated_delta(**{n: x[:, cut] for n, x in given.items()}, state=state)
        outputs.append(y)
    np.testing.assert_allclose(np.array(mx.concatenate(outputs, 1)), np.array(whole), atol=2e-6)
    np.testing.assert_allclose(np.array(state), np.array(last), atol=2e-6)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_summed_in_float32(dtype: mx.Dtype) -> None:
    given = {n: mx.array(x, dtype=mx.float32) for n, x in inputs().items()}
    given |= {name: given[name].astype(dtype) for name in ("q", "k", "v", "beta")}
    y, state = gated_delta(**given)
    right_y, right_state = mlx_lm(**given)
    assert (y.dtype, state.dtype) == (mx.float32, mx.float32)
    np.testing.assert_allclose(np.array(state), np.array(right_state), atol=2e-6)
    rounded = np.array(y.astype(dtype).astype(mx.float32))
    # A value next to the middle between two may be rounded the other way.
    right = np.array(right_y.astype(mx.float32))
    np.testing.assert_allclose(rounded, right, rtol=2 * mx.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("lower_bound", [None, -5.0])
@pytest.mark.parametrize("channels", [False, True])
def test_log_decays_are_those_of_mlx_lm(channels: bool, lower_bound: float | None) -> None:
    random = np.random.default_rng(0)
    a = mx.array(4 * random.normal(size=(2, 9, 3, 5) if channels else (2, 9, 3)))
    A_log = mx.array(random.normal(size=(3, 1) if channels else 3))
    bias = mx.array(random.normal(size=(3, 5) if channels else 3))
    if lower_bound is None:
        g = compute_g(A_log, a, bias)
    else:
        g = compute_lower_bound_g(A_log, a, bias, lower_bound)
    ours = log_decay(A_log, a, bias, lower_bound)
    assert float(ours.max()) <= 0
    np.testing.assert_allclose(np.exp(np.array(ours)), np.array(g), rtol=2e-5, atol=1e-30)
    # Where g is 0 in float32 its logarithm is not known any more.
    strong = log_decay(mx.array([5.0]), mx.array([[[30.0]]]), mx.array([0.0]))
    assert float(strong) == pytest.approx(-np.exp(5) * 30, rel=1e-6)
