"""Loss, log-probs, metrics and gradients against TRL's ORPO, as recorded in trl.json."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training.forward_path import arrays_of, fast_path, plain_path
from orpo_mlx.training.outputs import pair_metrics, pair_outputs
from tests.parity import trl_inputs
from tests.parity.trl_inputs import BETA, projections

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

TRL = trl_inputs.recorded()


def test_odds_ratio_loss_and_its_gradient_are_trls() -> None:
    recorded, logps = TRL["odds_ratio_loss"], trl_inputs.mean_logps()
    chosen, rejected = mx.array(logps[0]), mx.array(logps[1])
    losses = orpo_loss(chosen, rejected, BETA)
    ratios = np.array(recorded["ratios"])
    # A few roundings of float32 on both sides; the log odds ratio, a difference of terms up to
    # 20, where a float32 has a spacing of 2e-6, goes into its log-sigmoid.
    close = {"rtol": 1e-5, "atol": 5e-6}
    np.testing.assert_allclose(BETA * losses.odds_ratio_loss, -ratios, **close)
    np.testing.assert_allclose(losses.loss, -logps[0] - ratios, **close)
    metrics = pair_metrics(losses, chosen, rejected, BETA)
    for name in ("log_odds_ratio", "log_odds_chosen", "rewards/chosen", "rewards/rejected"):
        # Means of 40 such values.
        assert metrics[name].mean().item() == pytest.approx(recorded[name], rel=1e-5), name

    gradients = mx.grad(lambda c, r: orpo_loss(c, r, BETA).loss.sum(), argnums=(0, 1))
    for got, expected in zip(gradients(chosen, rejected), recorded["gradients"], strict=True):
        np.testing.assert_allclose(got, expected, **close)


class Saying(nn.Module):
    """A model that says these logits; the last position predicts a token that nobody has."""

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.layers: list[nn.Module] = []
        self._logits = logits

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return mx.array(self._logits[:, : inputs.shape[1]])


def test_mean_logps_are_those_of_trls_get_batch_logps() -> None:
    pairs = [EncodedPair(*parts, "") for parts in trl_inputs.pairs()]
    path = plain_path(Saying(trl_inputs.logits()))
    batch = arrays_of(path.batch(pairs, range(len(pairs)), "response"))
    outputs = pair_outputs(path, batch, beta=BETA)
    got = np.concatenate([np.array(outputs.chosen_logps), np.array(outputs.rejected_logps)])
    # float32 log-probs of up to 30, where the spacing is 2e-6.
    np.testing.assert_allclose(got, TRL["get_batch_logps"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_step_on_prompt_and_response_is_trls(tied: bool, plain: bool) -> None:
    recorded = TRL["first_step"]["tied" if tied else "untied"]
    parts = (np.array(recorded[name], np.int32) for name in ("prompt", "chosen", "rejected"))
    pair = EncodedPair(*parts, location="")
    model, _ = trl_inputs.llama(tied)
    path = plain_path(model) if plain else fast_path(model)[0]
    batch = arrays_of(path.batch([pair], [0], "prompt+response"))
    metrics: dict[str, mx.array] = {}

    def first_step() -> mx.array:
        outputs = pair_outputs(path, batch, beta=BETA)
        metrics.update(pair_metrics(*outputs, BETA))
        return outputs.losses.loss.mean()

    loss, gradients = nn.value_and_grad(model, first_step)()
    logged = recorded["logged"]
    # The wish is 1e-4; float32 in two libraries gives 1e-6.
    assert loss.item() == pytest.approx(logged["loss"], abs=1e-5)
    assert logged["log_odds_ratio"] < 0
    for name, values in metrics.items():
        if name != "saturated_pairs":
            assert values.item() == pytest.approx(logged[name], abs=1e-5), name
    ours = dict(tree_flatten(gradients))
    assert ours.keys() == recorded["gradients"].keys()
    for name, expected in recorded["gradients"].items():
        # As above, relative to the gradient's norm; sums of up to 25,000 such entries.
        got = projections(np.array(ours[name]))
        np.testing.assert_allclose(got, expected, atol=1e-4 * expected[0], rtol=0, err_msg=name)
