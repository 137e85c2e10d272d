"""What a model says of pairs, against one unpadded forward a response and float64 arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.data.batching import Batch
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training.evaluate import (
    PairOutputs,
    evaluate_encoded,
    pair_metrics,
    pair_outputs,
    summary,
)
from orpo_mlx.training.metrics import Event, Progress
from orpo_mlx.training.path import ForwardPath, arrays_of, fast_path, plain_path
from tests import tiny

BETA = 0.3
# Lengths of prompt, chosen, rejected: single tokens, either response the longer one.
SHAPES = [(5, 9, 3), (1, 1, 1), (23, 2, 14), (8, 31, 30), (3, 1, 6)]
# float32 through three layers, its sums in another order for another padding; about 1e-6 here.
ATOL = 1e-5
NLL_ON = ["response", "prompt+response"]


def random_pairs(seed: int = 0, *, lowest: int = 0) -> list[EncodedPair]:
    """A pair of each of SHAPES. Token 0, which pads, is among the tokens."""
    random = np.random.default_rng(seed)
    return [
        EncodedPair(
            *(random.integers(lowest, tiny.VOCABULARY, n).astype(np.int32) for n in shape), ""
        )
        for shape in SHAPES
    ]


def kindred_pairs(*, lowest: int = 0) -> list[EncodedPair]:
    """The same under one system prompt; three of them with responses that begin alike."""
    random = np.random.default_rng(1)
    system = random.integers(lowest, tiny.VOCABULARY, 20)
    pairs = []
    for number, (prompt, chosen, rejected, place) in enumerate(random_pairs(lowest=lowest)):
        together = random.integers(lowest, tiny.VOCABULARY, (0, 4, 1, 0, 17)[number])
        parts = ((system, prompt), (together, chosen), (together, rejected))
        pairs.append(EncodedPair(*(np.concatenate(p).astype(np.int32) for p in parts), place))
    return pairs


PAIRS = {"strangers": random_pairs, "kindred": kindred_pairs}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tiny llama. Do not train it."""
    return tiny.build_model()[0]


@pytest.fixture(params=["fast", "rounded", "plain", "rows"])
def path(model: nn.Module, request: pytest.FixtureRequest) -> ForwardPath:
    """Every path that there is through the model."""
    return path_through(model, request.param)


def path_through(model: nn.Module, kind: str, *, checkpoint: bool = False) -> ForwardPath:
    if kind == "plain":
        return plain_path(model, checkpoint=checkpoint)
    if kind == "rows":
        return plain_path(model, layout="rows", checkpoint=checkpoint)
    found, reason = fast_path(model, checkpoint=checkpoint, rounding=2 * (kind == "rounded"))
    assert reason is None
    return found


def said(path: ForwardPath, batch: Batch) -> PairOutputs:
    return pair_outputs(path, arrays_of(batch), beta=BETA)


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


def assert_equal(got: PairOutputs, expected: PairOutputs) -> None:
    """Bit for bit."""
    for name, array in tree_flatten(got._asdict()):
        assert array.tolist() == dict(tree_flatten(expected._asdict()))[name].tolist(), name


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("nll_on", NLL_ON)
def test_pair_outputs_are_those_of_each_response_alone(
    model: nn.Module, path: ForwardPath, nll_on: str, kind: str
) -> None:
    pairs = PAIRS[kind]()
    outputs = said(path, path.batch(pairs, range(len(pairs)), nll_on))
    references = [Reference(model, pair) for pair in pairs]
    assert_same(outputs.chosen_logps, [r.chosen for r in references])
    assert_same(outputs.rejected_logps, [r.rejected for r in references])
    assert_same(outputs.losses.log_odds, [r.log_odds for r in references])
    with_prompt = nll_on == "prompt+response"
    nll = [-(r.prompt_and_chosen if with_prompt else r.chosen) for r in references]
    assert_same(outputs.losses.nll_loss, nll)
    expected = [r.loss(n) for r, n in zip(references, nll, strict=True)]
    assert_same(outputs.losses.loss, expected)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("nll_on", NLL_ON)
def test_a_pair_alone_has_the_outputs_that_it_has_among_others(
    path: ForwardPath, nll_on: str, kind: str
) -> None:
    pairs = PAIRS[kind]()
    together = said(path, path.batch(pairs, range(len(pairs)), nll_on))
    for index in range(len(pairs)):
        alone = said(path, path.batch(pairs, [index], nll_on))
        for got, expected in zip(alone.losses, together.losses, strict=True):
            assert_same(got, expected[index : index + 1])
        assert_same(alone.chosen_logps, together.chosen_logps[index : index + 1])
        assert_same(alone.rejected_logps, together.rejected_logps[index : index + 1])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("nll_on", NLL_ON)
def test_what_stands_in_the_padding_changes_no_bit(
    path: ForwardPath, nll_on: str, kind: str
) -> None:
    pairs = PAIRS[kind](lowest=1)  # 0 is padding, then, and nothing else
    batch = path.batch(pairs, range(len(pairs)), nll_on)
    random = np.random.default_rng(1)

    def filled(ids: np.ndarray) -> np.ndarray:
        return np.where(ids == 0, random.integers(1, tiny.VOCABULARY, ids.shape), ids)

    assert sum((call.ids == 0).sum() for call in batch.calls) == batch.padding
    assert (batch.padding > 0) is (path.layout != "rows")
    calls = tuple(call._replace(ids=filled(call.ids)) for call in batch.calls)
    # What fills up the scored positions has no weight, whatever its target.
    unused = ~used(batch)
    assert not batch.targets[unused].any()
    assert unused.any() == (path.rounding > 0)
    targets = np.where(unused, filled(0 * batch.targets), batch.targets)
    assert_equal(said(path, batch._replace(calls=calls, targets=targets)), said(path, batch))


def used(batch: Batch) -> np.ndarray:
    """Which scored positions have a weight."""
    weights = batch.weights if batch.nll_weights is None else [*batch.weights, *batch.nll_weights]
    return np.any(weights, axis=0)


def test_prompt_tokens_are_never_scored(path: ForwardPath) -> None:
    # Other tokens in prompts than in responses: a target tells whose it is.
    pairs = [
        p._replace(prompt=p.prompt // 2, chosen=200 + p.chosen % 100, rejected=200 + p.rejected % 9)
        for p in kindred_pairs()
    ]
    batch = path.batch(pairs, range(len(pairs)), "response")
    assert batch.targets[used(batch)].min() >= 200
    assert batch.nll_weights is None
    # The same where the prompts are scored for the likelihood: they are no part of the log-probs.
    with_prompts = path.batch(pairs, range(len(pairs)), "prompt+response")
    of_prompt = with_prompts.targets < 200
    assert (of_prompt & used(with_prompts)).any()
    assert not with_prompts.weights[:, of_prompt].any()


@pytest.mark.parametrize("kind", PAIRS)
def test_prompt_and_response_scores_the_prompt_in_the_nll_alone(
    path: ForwardPath, kind: str
) -> None:
    pairs = PAIRS[kind]()
    batch = path.batch(pairs, range(len(pairs)), "prompt+response")
    of_prompt = used(batch) & ~np.any(batch.weights, axis=0)
    targets = np.where(of_prompt, (batch.targets + 7) % tiny.VOCABULARY, batch.targets)
    got, expected = said(path, batch._replace(targets=targets)), said(path, batch)
    assert got.losses.log_odds.tolist() == expected.losses.log_odds.tolist()
    assert got.chosen_logps.tolist() == expected.chosen_logps.tolist()
    assert got.rejected_logps.tolist() == expected.rejected_logps.tolist()
    differs = np.array(got.losses.nll_loss) != np.array(expected.losses.nll_loss)
    # A prompt of one token has nothing that is predicted.
    assert differs.tolist() == [len(pair.prompt) > 1 for pair in pairs]


def test_every_response_token_is_scored(path: ForwardPath) -> None:
    pair = kindred_pairs()[1]  # four tokens of both, then one of each
    batch = path.batch([pair], [0], "response")
    before, seen = said(path, batch), []
    for position in np.flatnonzero(used(batch)):
        targets = batch.targets.copy()
        targets[position] = (targets[position] + 7) % tiny.VOCABULARY
        after = said(path, batch._replace(targets=targets))
        seen.append((
            after.chosen_logps.item() != before.chosen_logps.item(),
            after.rejected_logps.item() != before.rejected_logps.item(),
        ))  # fmt: skip
    shared = [(True, True)] * 4 if path.layout == "tree" else [(True, False), (False, True)] * 4
    assert sorted(seen) == sorted([*shared, (True, False), (False, True)])


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", ["fast", "rounded", "plain"])
@pytest.mark.parametrize("nll_on", NLL_ON)
def test_gradient_of_a_batch_is_the_mean_of_its_micro_batches(
    nll_on: str, kind: str, checkpoint: bool
) -> None:
    model, pairs = tiny.build_model()[0], kindred_pairs()
    path = path_through(model, kind, checkpoint=checkpoint)

    def gradients(indices: Sequence[int]) -> tuple[mx.array, Any]:
        def loss() -> mx.array:
            return said(path, path.batch(pairs, indices, nll_on)).losses.loss.mean()

        with path.differentiated():
            return nn.value_and_grad(model, loss)()

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
    model: nn.Module, path: ForwardPath, batch_size: int
) -> None:
    pairs = random_pairs()
    values = evaluate_encoded(path, pairs, beta=BETA, nll_on="response", batch_size=batch_size)
    references = [Reference(model, pair) for pair in pairs]
    assert all(array.shape == (len(pairs),) for array in values.values())
    assert_same(values["logps/chosen"], [r.chosen for r in references])
    assert_same(values["logps/rejected"], [r.rejected for r in references])
    assert_same(values["loss"], [r.loss(-r.chosen) for r in references])


def test_evaluation_says_what_training_says(path: ForwardPath) -> None:
    pairs = kindred_pairs()
    values = evaluate_encoded(path, pairs, beta=BETA, nll_on="prompt+response", batch_size=1)
    assert path.model.training
    for index in range(len(pairs)):
        outputs = said(path, path.batch(pairs, [index], "prompt+response"))
        assert outputs.losses.loss.item() == values["loss"][index]


def test_evaluation_tells_how_far_it_is(model: nn.Module) -> None:
    events: list[Event] = []
    evaluate_encoded(
        fast_path(model)[0], random_pairs(), beta=BETA, nll_on="response", batch_size=2,
        emit=events.append, stage="Base",
    )  # fmt: skip
    assert events == [Progress("Base", done, 5) for done in (2, 4, 5)]


@pytest.mark.parametrize("kind", ["fast", "plain"])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_and_leaves_the_models_mode(kind: str, training: bool) -> None:
    losses = {}
    for dropout in (0.0, 0.5):
        model = tiny.build_model()[0]
        targets = lora.find_targets(model, ["all-linear", "embed_tokens"], -1)
        lora.attach(model, targets, kind="lora", rank=4, scale=2.0, dropout=dropout, bits={})
        lora.reset_dropout(model, mx.random.key(0))
        mx.random.seed(0)
        model.update(
            tree_map(lambda w: w + mx.random.normal(w.shape), model.trainable_parameters())
        )
        path = path_through(model.train(training), kind)
        settings = {"beta": BETA, "nll_on": "response", "batch_size": 2}
        losses[dropout] = evaluate_encoded(path, random_pairs(), **settings)["loss"].tolist()
        assert {module.training for module in model.modules()} == {training}
    assert losses[0.5] == losses[0.0]


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
