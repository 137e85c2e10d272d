"""What a model says of pairs, against one unpadded forward a response and float64 arithmetic."""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.data.batching import build_batch
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training.evaluate import evaluate_encoded, pair_metrics, pair_outputs, summary
from orpo_mlx.training.metrics import Event, Progress
from tests import tiny

BETA = 0.3
# Lengths of prompt, chosen, rejected: single tokens, either response the longer one.
SHAPES = [(5, 9, 3), (1, 1, 1), (23, 2, 14), (8, 31, 30), (3, 1, 6)]
# float32 through three layers, its sums in another order for another padding; about 1e-6 here.
ATOL = 1e-5


def random_pairs(seed: int = 0) -> list[EncodedPair]:
    """A pair of each of SHAPES. Token 0, which pads, is among the tokens."""
    random = np.random.default_rng(seed)
    return [
        EncodedPair(*(random.integers(0, tiny.VOCABULARY, n).astype(np.int32) for n in shape), "")
        for shape in SHAPES
    ]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny llama. Do not train it."""
    return tiny.build_model()[0]


class Reference:
    """The log-probs of a pair, each response alone through the model's own call."""

    def __init__(self, model: nn.Module, pair: EncodedPair):
        chosen = self._token_logps(model, [*pair.prompt, *pair.chosen])
        rejected = self._token_logps(model, [*pair.prompt, *pair.rejected])
        self.chosen = chosen[-len(pair.chosen) :].mean()
        self.rejected = rejected[-len(pair.rejected) :].mean()
        # Every token but the first is predicted from those before it.
        self.prompt_and_chosen = chosen.mean()

    @staticmethod
    def _token_logps(model: nn.Module, tokens: Sequence[int]) -> np.ndarray:
        """log p of the second to the last token, in float64."""
        logits = np.array(model(mx.array([list(map(int, tokens))]))[0, :-1], dtype=np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return logps[np.arange(len(tokens) - 1), tokens[1:]]

    @property
    def log_odds(self) -> float:
        odds = [p / (1 - p) for p in (math.exp(self.chosen), math.exp(self.rejected))]
        return math.log(odds[0] / odds[1])

    def loss(self, nll: float) -> float:
        return nll + BETA * math.log(1 + math.exp(-self.log_odds))


def assert_same(got: mx.array, expected: Sequence[float] | mx.array) -> None:
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=ATOL, rtol=0)


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
def test_pair_outputs_are_those_of_each_response_alone(model: nn.Module, nll_on: str) -> None:
    pairs = random_pairs()
    outputs = pair_outputs(model, build_batch(pairs, range(len(pairs))), beta=BETA, nll_on=nll_on)
    references = [Reference(model, pair) for pair in pairs]
    assert_same(outputs.chosen_logps, [r.chosen for r in references])
    assert_same(outputs.rejected_logps, [r.rejected for r in references])
    assert_same(outputs.losses.log_odds, [r.log_odds for r in references])
    with_prompt = nll_on == "prompt+response"
    nll = [-(r.prompt_and_chosen if with_prompt else r.chosen) for r in references]
    assert_same(outputs.losses.nll_loss, nll)
    expected = [r.loss(n) for r, n in zip(references, nll, strict=True)]
    assert_same(outputs.losses.loss, expected)


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
def test_padding_changes_no_output(model: nn.Module, nll_on: str) -> None:
    pairs = random_pairs()
    together = pair_outputs(model, build_batch(pairs, range(len(pairs))), beta=BETA, nll_on=nll_on)
    for index in range(len(pairs)):
        alone = pair_outputs(model, build_batch(pairs, [index]), beta=BETA, nll_on=nll_on)
        for got, expected in zip(alone.losses, together.losses, strict=True):
            assert_same(got, expected[index : index + 1])
        assert_same(alone.chosen_logps, together.chosen_logps[index : index + 1])
        assert_same(alone.rejected_logps, together.rejected_logps[index : index + 1])


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
def test_what_stands_in_the_padding_changes_no_bit(model: nn.Module, nll_on: str) -> None:
    batch = build_batch(random_pairs(), range(len(SHAPES)))
    padding = ~(batch.response_mask | batch.prompt_mask)
    assert padding.any()
    noise = np.random.default_rng(1).integers(1, tiny.VOCABULARY, padding.shape)
    # inputs[:, t + 1] is targets[:, t]; the first input is never padding.
    inputs = batch.inputs.copy()
    inputs[:, 1:] = np.where(padding, noise, batch.targets)[:, :-1]
    changed = batch._replace(inputs=inputs, targets=np.where(padding, noise, batch.targets))
    got = pair_outputs(model, changed, beta=BETA, nll_on=nll_on)
    expected = pair_outputs(model, batch, beta=BETA, nll_on=nll_on)
    assert got.losses.loss.tolist() == expected.losses.loss.tolist()
    assert got.chosen_logps.tolist() == expected.chosen_logps.tolist()
    assert got.rejected_logps.tolist() == expected.rejected_logps.tolist()


def test_prompt_tokens_are_never_scored(model: nn.Module) -> None:
    batch = build_batch(random_pairs(), range(len(SHAPES)))
    # Other targets at the prompt's positions; what the model reads stays.
    targets = np.where(batch.prompt_mask, (batch.targets + 7) % tiny.VOCABULARY, batch.targets)
    changed = batch._replace(targets=targets)
    got = pair_outputs(model, changed, beta=BETA, nll_on="response")
    expected = pair_outputs(model, batch, beta=BETA, nll_on="response")
    assert got.chosen_logps.tolist() == expected.chosen_logps.tolist()
    assert got.rejected_logps.tolist() == expected.rejected_logps.tolist()
    for part, same in zip(got.losses, expected.losses, strict=True):
        assert part.tolist() == same.tolist()


def test_prompt_and_response_scores_the_prompt_in_the_nll_alone(model: nn.Module) -> None:
    batch = build_batch(random_pairs(), range(len(SHAPES)))
    targets = np.where(batch.prompt_mask, (batch.targets + 7) % tiny.VOCABULARY, batch.targets)
    changed = batch._replace(targets=targets)
    got = pair_outputs(model, changed, beta=BETA, nll_on="prompt+response")
    expected = pair_outputs(model, batch, beta=BETA, nll_on="prompt+response")
    assert got.losses.log_odds.tolist() == expected.losses.log_odds.tolist()
    differs = np.array(got.losses.nll_loss) != np.array(expected.losses.nll_loss)
    # A prompt of one token has nothing that is predicted.
    assert differs.tolist() == [shape[0] > 1 for shape in SHAPES]


def test_every_response_token_is_scored(model: nn.Module) -> None:
    pair = random_pairs()[0]
    batch = build_batch([pair], [0])
    before = pair_outputs(model, batch, beta=BETA, nll_on="response")
    for row, position in np.argwhere(batch.response_mask):
        targets = batch.targets.copy()
        targets[row, position] = (targets[row, position] + 7) % tiny.VOCABULARY
        after = pair_outputs(model, batch._replace(targets=targets), beta=BETA, nll_on="response")
        changed = [
            after.chosen_logps.item() != before.chosen_logps.item(),
            after.rejected_logps.item() != before.rejected_logps.item(),
        ]
        assert changed == [row == 0, row == 1]


@pytest.mark.parametrize("nll_on", ["response", "prompt+response"])
def test_gradient_of_a_batch_is_the_mean_of_its_micro_batches(nll_on: str) -> None:
    model, pairs = tiny.build_model()[0], random_pairs()
    gradients = nn.value_and_grad(
        model,
        lambda indices: pair_outputs(
            model, build_batch(pairs, indices), beta=BETA, nll_on=nll_on
        ).losses.loss.mean(),
    )
    loss, whole = gradients([0, 1, 2, 3])
    losses, parts = zip(*(gradients(cut) for cut in ([3, 0], [2, 1])), strict=True)
    assert_same(loss, sum(losses) / 2)
    mean = dict(tree_flatten(tree_map(lambda a, b: (a + b) / 2, *parts)))
    for name, gradient in tree_flatten(whole):
        # Sums of float32 in another order, relative to the largest entry of a gradient.
        allowed = 2e-5 * mx.abs(gradient).max().item()
        assert mx.abs(gradient - mean[name]).max().item() <= allowed, name


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_evaluation_keeps_the_order_of_pairs_at_any_batch_size(
    model: nn.Module, batch_size: int
) -> None:
    pairs = random_pairs()
    values = evaluate_encoded(
        model, pairs, beta=BETA, nll_on="response", batch_size=batch_size
    )  # fmt: skip
    references = [Reference(model, pair) for pair in pairs]
    assert all(array.shape == (len(pairs),) for array in values.values())
    assert_same(values["logps/chosen"], [r.chosen for r in references])
    assert_same(values["logps/rejected"], [r.rejected for r in references])
    assert_same(values["loss"], [r.loss(-r.chosen) for r in references])


def test_evaluation_tells_how_far_it_is(model: nn.Module) -> None:
    events: list[Event] = []
    evaluate_encoded(
        model, random_pairs(), beta=BETA, nll_on="response", batch_size=2,
        emit=events.append, stage="Base",
    )  # fmt: skip
    assert events == [Progress("Base", done, 5) for done in (2, 4, 5)]


class Dropping(nn.Module):
    """A model with dropout at its end."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.dropout = nn.Dropout(0.5)

    def __call__(self, inputs: mx.array) -> mx.array:
        return self.dropout(self.inner(inputs))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_and_leaves_the_models_mode(
    model: nn.Module, training: bool
) -> None:
    dropping = Dropping(model).train(training)
    settings = {"beta": BETA, "nll_on": "response", "batch_size": 2}
    got = evaluate_encoded(dropping, random_pairs(), **settings)
    assert dropping.training is training
    assert dropping.dropout.training is training
    expected = evaluate_encoded(model, random_pairs(), **settings)
    assert got["loss"].tolist() == expected["loss"].tolist()


def test_metrics_have_trls_names_and_meanings() -> None:
    # p = 1/2 and 1/5, then the other way round: odds ratio 4 and 1/4.
    half, fifth = math.log(1 / 2), math.log(1 / 5)
    chosen, rejected = mx.array([half, fifth]), mx.array([fifth, half])
    metrics = pair_metrics(orpo_loss(chosen, rejected, BETA), chosen, rejected, BETA)
    expected = {
        "loss": [-half - BETA * math.log(4 / 5), -fifth - BETA * math.log(1 / 5)],
        "nll_loss": [-half, -fifth],
        "log_odds_ratio": [math.log(4 / 5), math.log(1 / 5)],  # log sigmoid(log odds ratio)
        "log_odds_chosen": [math.log(4), -math.log(4)],
        "rewards/chosen": [BETA * half, BETA * fifth],
        "rewards/rejected": [BETA * fifth, BETA * half],
        "rewards/accuracies": [1, 0],
        "rewards/margins": [BETA * (half - fifth), BETA * (fifth - half)],
        "logps/chosen": [half, fifth],
        "logps/rejected": [fifth, half],
        "saturated_pairs": [0, 0],
    }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        # A few roundings of float32.
        np.testing.assert_allclose(metrics[name], values, rtol=1e-6, err_msg=name)


def test_accuracies_go_by_logps_where_beta_is_0() -> None:
    chosen, rejected = mx.array([-1.0, -2.0, -1.0]), mx.array([-2.0, -1.0, -1.0])
    metrics = pair_metrics(orpo_loss(chosen, rejected, 0.0), chosen, rejected, 0.0)
    # A tie is not a win.
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["rewards/margins"].tolist() == [0.0, 0.0, 0.0]


def test_a_certain_response_is_counted_as_a_saturated_pair() -> None:
    chosen, rejected = mx.array([0.0, -1.0, -1.0]), mx.array([-1.0, 0.0, -2.0])
    metrics = pair_metrics(orpo_loss(chosen, rejected, BETA), chosen, rejected, BETA)
    assert metrics["saturated_pairs"].tolist() == [1.0, 1.0, 0.0]


def test_summary_means_over_pairs_but_counts_saturated_ones() -> None:
    values = {"loss": np.array([1.0, 2.0, 6.0]), "saturated_pairs": np.array([1.0, 0.0, 1.0])}
    assert summary(values) == {"loss": 3.0, "saturated_pairs": 2.0}
    assert summary(values, "eval_") == {"eval_loss": 3.0, "eval_saturated_pairs": 2.0}
