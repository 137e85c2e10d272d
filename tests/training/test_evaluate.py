"""Every metric of many pairs in batches, and their summary, against each pair alone."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from orpo_mlx.events import Event, Progress
from orpo_mlx.model import lora
from orpo_mlx.training.evaluate import evaluate_encoded
from orpo_mlx.training.forward_path import ForwardPath, fast_path
from orpo_mlx.training.outputs import mean_metrics
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


def test_evaluation_computes_what_training_computes(path: ForwardPath) -> None:
    pairs = kindred_pairs()
    values = evaluate_encoded(path, pairs, beta=BETA, nll_on="prompt+response", batch_size=1)
    assert path.model.training
    for index in range(len(pairs)):
        outputs = outputs_of(path, path.batch(pairs, [index], "prompt+response"))
        assert outputs.losses.loss.item() == values["loss"][index]


def test_evaluation_reports_how_far_it_is(model: nn.Module) -> None:
    events: list[Event] = []
    evaluate_encoded(
        fast_path(model)[0],
        random_pairs(),
        beta=BETA,
        nll_on="response",
        batch_size=2,
        report=events.append,
        stage="Base",
    )
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


def test_summary_means_over_pairs_but_counts_saturated_ones() -> None:
    values = {"loss": np.array([1.0, 2.0, 6.0]), "saturated_pairs": np.array([1.0, 0.0, 1.0])}
    assert mean_metrics(values) == {"loss": 3.0, "saturated_pairs": 2.0}
    assert mean_metrics(values, "eval_") == {"eval_loss": 3.0, "eval_saturated_pairs": 2.0}
