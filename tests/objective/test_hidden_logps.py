"""Log-probs from hidden states through a head, in chunks: values, gradients and memory."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.objective import logps
from orpo_mlx.objective.logps import BLOCK, CHUNK_BYTES, chunk_positions, hidden_logps
from tests.objective.arrays import POSITIONS, VOCABULARY, exact, random_targets

WIDTH = 24


class Case:
    """A head with its states and, in float64, what its log-probs and their gradients must be."""

    def __init__(self, kind: str, vocabulary: int = VOCABULARY, dtype: mx.Dtype = mx.float32):
        random = np.random.default_rng(3)
        self.kind = kind
        self.hidden = self._array(random.standard_normal((POSITIONS, WIDTH)), dtype)
        self.weight = self._array(random.standard_normal((vocabulary, WIDTH)) / 2, dtype)
        self.bias = self._array(random.standard_normal(vocabulary), dtype)
        self.targets = random_targets(vocabulary=vocabulary)
        self.cotangent = self._array(random.standard_normal(POSITIONS), mx.float32)
        self.calls = 0

    @staticmethod
    def _array(values: np.ndarray, dtype: mx.Dtype) -> mx.array:
        return mx.array(values.astype(np.float32)).astype(dtype)

    def head(self, states: mx.array, start: int, *parameters: mx.array) -> mx.array:
        self.calls += 1
        # The number of the first state is that of the chunk.
        assert mx.array_equal(states, self.hidden[start : start + len(states)]).item()
        weight, bias = parameters or (self.weight, self.bias)
        logits = states @ weight.T
        if self.kind == "biased":
            logits = logits + bias
        if self.kind == "scaled":
            logits = logits / 3.0
        if self.kind == "capped":
            logits = 2.0 * mx.tanh(logits / 2.0)
        return logits

    def logps(self, hidden: mx.array, *parameters: mx.array, chunk: int = 16) -> mx.array:
        return hidden_logps(hidden, self.targets, self.head, parameters=parameters, chunk=chunk)

    def gradients(self, *, trained: bool, chunk: int = 16) -> list[np.ndarray]:
        """Values, and gradients of the states and of what is trained of the head."""
        parameters = [self.weight, self.bias][: 2 * trained]
        given = [self.hidden, *parameters]
        values, gradients = mx.vjp(
            lambda h, *ps: self.logps(h, *ps, chunk=chunk), given, [self.cotangent]
        )
        assert values[0].dtype == mx.float32
        assert [g.dtype for g in gradients] == [g.dtype for g in given]
        return [exact(a) for a in [*values, *gradients]]

    def expected(self) -> list[np.ndarray]:
        """Values, and gradients of the states, of the weight, of the bias."""
        hidden, weight, bias = exact(self.hidden), exact(self.weight), exact(self.bias)
        scale = 3.0 if self.kind == "scaled" else 1.0
        raw = hidden @ weight.T / scale + (bias if self.kind == "biased" else 0.0)
        logits, slope = raw, np.full_like(raw, 1 / scale)
        if self.kind == "capped":
            logits, slope = 2 * np.tanh(raw / 2), 1 - np.tanh(raw / 2) ** 2
        logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        rows, targets = np.arange(POSITIONS), np.array(self.targets)
        by_logit = -np.exp(logps)
        by_logit[rows, targets] += 1
        by_logit *= slope * exact(self.cotangent)[:, None]
        by_bias = by_logit.sum(axis=0) if self.kind == "biased" else np.zeros_like(bias)
        return [logps[rows, targets], by_logit @ weight, by_logit.T @ hidden, by_bias]


HEADS = ["linear", "biased", "scaled", "capped"]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, BLOCK + 88])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("trained", [False, True])
def test_values_and_gradients_from_hidden_states_are_those_of_float64(
    kind: str, trained: bool, vocabulary: int
) -> None:
    case = Case(kind, vocabulary)
    got = case.gradients(trained=trained)
    assert len(got) == (4 if trained else 2)
    for array, expected in zip(got, case.expected(), strict=False):
        # float32 sums of up to 600 terms.
        np.testing.assert_allclose(array, expected, atol=3e-6 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("chunk", [1, 7, 39, POSITIONS, 1000])
@pytest.mark.parametrize("trained", [False, True])
def test_the_size_of_the_chunks_changes_nothing(trained: bool, chunk: int) -> None:
    case = Case("capped")
    for got, expected in zip(
        case.gradients(trained=trained, chunk=chunk), case.gradients(trained=trained), strict=True
    ):
        # A matrix product of other shape, and sums over chunks.
        np.testing.assert_allclose(got, expected, atol=2e-6 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("trained", [False, True])
def test_without_a_gradient_the_values_are_the_same(kind: str, trained: bool) -> None:
    case = Case(kind)
    parameters = [case.weight, case.bias][: 2 * trained]
    got = hidden_logps(
        case.hidden, case.targets, case.head, parameters=parameters, chunk=7, gradient=False
    )
    assert got.tolist() == case.logps(case.hidden, *parameters, chunk=7).tolist()


def test_a_frozen_head_runs_once_and_a_trained_one_once_more_for_the_gradient() -> None:
    chunks = math.ceil(POSITIONS / 7)
    for trained, runs in ((False, chunks), (True, 2 * chunks)):
        case = Case("linear")
        case.gradients(trained=trained, chunk=7)
        assert case.calls == runs


def test_a_quantized_head_has_the_gradient_of_its_values() -> None:
    mx.random.seed(0)
    linear = nn.Linear(64, VOCABULARY, bias=False)
    quantized = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=4)
    linear.weight = mx.dequantize(
        quantized.weight, quantized.scales, quantized.biases, group_size=32, bits=4
    )
    hidden, targets = mx.random.normal((POSITIONS, 64)), random_targets()
    got, expected = (
        mx.value_and_grad(
            lambda h, head=head: hidden_logps(h, targets, lambda s, _: head(s), chunk=16).sum()
        )(hidden)
        for head in (quantized, linear)
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def confident(doubt: float, vocabulary: int, dtype: mx.Dtype) -> tuple[mx.array, ...]:
    """States, head weights and targets with p about 1 - doubt.

    The target's logit is exact in bfloat16: what a logit loses by its own rounding is the model's,
    whoever takes the gradient.
    """
    random = np.random.default_rng(0)
    weight = random.standard_normal((vocabulary, WIDTH)) / math.sqrt(WIDTH)
    hidden = random.standard_normal((POSITIONS, WIDTH))
    targets = np.full(POSITIONS, 100)
    weight[:, 0], weight[100], weight[100, 0] = 0.0, 0.0, 1.0
    hidden[:, 0] = round(2 * math.log(vocabulary * math.exp(0.5) / doubt)) / 2
    arrays = (mx.array(a.astype(np.float32)).astype(dtype) for a in (hidden, weight))
    return *arrays, mx.array(targets)


def confident_reference(
    hidden: mx.array, weight: mx.array, targets: mx.array
) -> tuple[np.ndarray, np.ndarray]:
    """1 - p and the gradient of log p by the states, without cancellation."""
    states, rows, heads = exact(hidden), np.arange(POSITIONS), exact(weight)
    where = np.array(targets)
    logits = states @ heads.T
    others = np.exp(logits - logits[rows, where][:, None])
    others[rows, where] = 0.0
    rest = others.sum(axis=-1, keepdims=True)
    g = rest * heads[where] - others @ heads
    return (rest / (1 + rest))[:, 0], g / (1 + rest)


def relative_error(got: mx.array, expected: np.ndarray) -> float:
    """The largest of all positions."""
    error = np.linalg.norm(exact(got) - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return float(error.max())


@pytest.mark.parametrize("doubt", [1e-2, 1e-3, 1e-4, 1e-5])
def test_an_almost_certain_token_has_its_gradient_in_bfloat16(doubt: float) -> None:
    hidden, weight, targets = confident(doubt, 2000, mx.bfloat16)
    doubts, g = confident_reference(hidden, weight, targets)
    assert doubt / 3 < doubts.min() < doubts.max() < 3 * doubt
    head = lambda states, start: states @ weight.T  # noqa: E731
    values, (got,) = mx.vjp(
        lambda h: hidden_logps(h, targets, head, chunk=16), [hidden], [mx.ones(POSITIONS)]
    )
    assert got.dtype == mx.bfloat16
    # The other logits' own rounding, 1 in 500 each, over a sum of 2000 of them.
    np.testing.assert_allclose(values[0], np.log1p(-doubts), rtol=5e-3)
    assert relative_error(got, g) < 1e-2

    softmax = mx.softmax((hidden @ weight.T).astype(mx.float32), axis=-1).astype(mx.bfloat16)
    textbook = weight[targets] - softmax @ weight
    assert relative_error(textbook, g) > 0.1


def test_small_probabilities_keep_their_gradient_in_float16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 50,000 tokens share 1e-3: 2e-8 each, which is under float16's smallest.
    hidden, weight, targets = confident(1e-3, 50_000, mx.float16)
    _, g = confident_reference(hidden, weight, targets)

    def tail() -> float:
        """The error where the targets' own rows have no part."""
        head = lambda states, start: states @ weight.T  # noqa: E731
        # Weighed as a loss that is scaled would: the gradient's own cast loses nothing.
        _, (got,) = mx.vjp(
            lambda h: hidden_logps(h, targets, head, chunk=16),
            [hidden],
            [mx.full(POSITIONS, 1024.0)],
        )
        return relative_error(got[:, 1:], 1024 * g[:, 1:])

    assert tail() < 1e-2
    monkeypatch.setattr(logps, "HALF_SCALE", 1.0)
    assert tail() > 0.1


def test_chunks_hold_as_many_positions_as_fit() -> None:
    sizes = {v: chunk_positions(v) for v in (97, 32_000, 150_000, 1_000_000)}
    assert sizes == {97: 82474, 32_000: 250, 150_000: 53, 1_000_000: 16}
    assert all(4 * v * n <= CHUNK_BYTES for v, n in sizes.items() if n > 16)


def peak_gb(positions: int, vocabulary: int, *, trained: bool = False) -> float:
    """What values and gradients need besides states, weights and the gradients themselves."""
    hidden = mx.random.normal((positions, 64))
    weight, targets = mx.random.normal((vocabulary, 64)), mx.arange(positions)
    head = lambda states, start, *ws: states @ (ws[0] if ws else weight).T  # noqa: E731
    mx.eval(hidden, weight, targets)

    def loss(h: mx.array, *ws: mx.array) -> mx.array:
        chunk = chunk_positions(vocabulary)
        return hidden_logps(h, targets, head, parameters=ws, chunk=chunk).mean()

    given = [hidden, weight][: 1 + trained]
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    values, gradients = mx.value_and_grad(loss, argnums=list(range(len(given))))(*given)
    mx.eval(values, gradients)
    needed = before + sum(g.nbytes for g in gradients)
    return (mx.get_peak_memory() - needed) / 1e9


@pytest.mark.parametrize("trained", [False, True])
def test_memory_grows_with_neither_positions_nor_vocabulary(trained: bool) -> None:
    by_positions = [peak_gb(n, 20_000, trained=trained) for n in (500, 1000, 3000)]
    by_vocabulary = [peak_gb(500, v, trained=trained) for v in (5_000, 10_000, 40_000)]
    # Ten arrays of a chunk's logits, and of a trained head some gradients of 10 MB.
    assert max(by_positions + by_vocabulary) < 10 * CHUNK_BYTES / 1e9 + 0.06 * trained
    # 2000 more would be 0.16 GB of logits, and twice that with their gradient. What is freed is
    # so a little later than what needs it is made.
    assert by_positions[2] - by_positions[1] < 0.08


@pytest.mark.parametrize(
    "trained",
    [pytest.param(False, marks=pytest.mark.soak), pytest.param(True, marks=pytest.mark.long)],
)
def test_4000_positions_of_150_000_tokens_stay_under_600_mb(trained: bool) -> None:
    assert peak_gb(4000, 150_000, trained=trained) < 0.6
