"""What a model computes for a batch, against one forward per response and float64."""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.data.batching.prefix_tree import Batch
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training.forward_path import ForwardPath
from orpo_mlx.training.outputs import PairOutputs, pair_metrics
from tests import tiny
from tests.training.references import (
    BETA,
    Reference,
    assert_same,
    kindred_pairs,
    outputs_of,
    path_through,
    random_pairs,
)

pytestmark = pytest.mark.touchy

NLL_ON = ["response", "prompt+response"]
PAIRS = {"strangers": random_pairs, "kindred": kindred_pairs}


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
    outputs = outputs_of(path, path.batch(pairs, range(len(pairs)), nll_on))
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
    together = outputs_of(path, path.batch(pairs, range(len(pairs)), nll_on))
    for index in range(len(pairs)):
        alone = outputs_of(path, path.batch(pairs, [index], nll_on))
        for got, expected in zip(alone.losses, together.losses, strict=True):
            assert_same(got, expected[index : index + 1])
        assert_same(alone.chosen_logps, together.chosen_logps[index : index + 1])
        assert_same(alone.rejected_logps, together.rejected_logps[index : index + 1])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("nll_on", NLL_ON)
def test_what_is_in_the_padding_changes_no_bit(path: ForwardPath, nll_on: str, kind: str) -> None:
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
    assert_equal(
        outputs_of(path, batch._replace(calls=calls, targets=targets)), outputs_of(path, batch)
    )


def used(batch: Batch) -> np.ndarray:
    """Which scored positions have a weight."""
    weights = batch.weights if batch.nll_weights is None else [*batch.weights, *batch.nll_weights]
    return np.any(weights, axis=0)


def test_prompt_tokens_are_never_scored(path: ForwardPath) -> None:
    # Other tokens in prompts than in responses: a target shows whose it is.
    pairs = [
        p._replace(prompt=p.prompt // 2, chosen=200 + p.chosen % 100, rejected=200 + p.rejected % 9)
        for p in kindred_pairs()
    ]
    batch = path.batch(pairs, range(len(pairs)), "response")
    assert batch.targets[used(batch)].min() >= 200
    assert batch.nll_weights is None
    # The same where the prompts are scored for the likelihood: they are not part of the log-probs.
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
    got, expected = outputs_of(path, batch._replace(targets=targets)), outputs_of(path, batch)
    assert got.losses.log_odds.tolist() == expected.losses.log_odds.tolist()
    assert got.chosen_logps.tolist() == expected.chosen_logps.tolist()
    assert got.rejected_logps.tolist() == expected.rejected_logps.tolist()
    differs = np.array(got.losses.nll_loss) != np.array(expected.losses.nll_loss)
    # A prompt of one token has nothing that is predicted.
    assert differs.tolist() == [len(pair.prompt) > 1 for pair in pairs]


def test_every_response_token_is_scored(path: ForwardPath) -> None:
    pair = kindred_pairs()[1]  # four tokens of both, then one of each
    batch = path.batch([pair], [0], "response")
    before, seen = outputs_of(path, batch), []
    for position in np.flatnonzero(used(batch)):
        targets = batch.targets.copy()
        targets[position] = (targets[position] + 7) % tiny.VOCABULARY
        after = outputs_of(path, batch._replace(targets=targets))
        seen.append(
            (
                after.chosen_logps.item() != before.chosen_logps.item(),
                after.rejected_logps.item() != before.rejected_logps.item(),
            )
        )
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
            return outputs_of(path, path.batch(pairs, indices, nll_on)).losses.loss.mean()

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
