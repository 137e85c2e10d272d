"""Loss, log-probs, metrics and gradients against TRL's ORPO (trl.experimental.orpo)."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest

from orpo_mlx import backend

backend.prepare()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

from orpo_mlx.data.tokens.encoder import EncodedPair  # noqa: E402
from orpo_mlx.objective.loss import orpo_loss  # noqa: E402
from orpo_mlx.training.forward_path import arrays_of, fast_path, plain_path  # noqa: E402
from orpo_mlx.training.outputs import pair_metrics, pair_outputs  # noqa: E402
from tests import tiny  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

BETA = 0.7
IGNORED = -100  # what TRL's labels hold where nothing is scored


def trl_odds_ratio_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """TRL's method, without the trainer that it asks only for beta and a device."""
    trainer = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    return ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)


def test_odds_ratio_loss_and_its_gradient_are_trls() -> None:
    random = np.random.default_rng(0)
    logps = -np.exp(random.uniform(np.log(1e-3), np.log(20), (2, 500))).astype(np.float32)
    chosen, rejected = (torch.tensor(row, requires_grad=True) for row in logps)
    ratios, chosen_rewards, rejected_rewards, log_odds_ratio, log_odds = trl_odds_ratio_loss(
        chosen, rejected
    )
    # TRL returns +beta * log sigmoid, and subtracts its mean from the NLL.
    (-chosen - ratios).sum().backward()

    losses = orpo_loss(mx.array(logps[0]), mx.array(logps[1]), BETA)
    # A few roundings of float32 on both sides; the log odds ratio, a difference of terms up to
    # 20, where a float32 has a spacing of 2e-6, goes into its log-sigmoid.
    close = {"rtol": 1e-5, "atol": 5e-6}
    np.testing.assert_allclose(BETA * losses.odds_ratio_loss, -ratios.detach().numpy(), **close)
    np.testing.assert_allclose(losses.loss, (-chosen - ratios).detach().numpy(), **close)
    metrics = pair_metrics(losses, mx.array(logps[0]), mx.array(logps[1]), BETA)
    means = {name: values.mean().item() for name, values in metrics.items()}
    # Means of 500 such values.
    assert means["log_odds_ratio"] == pytest.approx(log_odds_ratio.item(), rel=1e-5)
    assert means["log_odds_chosen"] == pytest.approx(log_odds.item(), rel=1e-5)
    assert means["rewards/chosen"] == pytest.approx(chosen_rewards.mean().item(), rel=1e-5)
    assert means["rewards/rejected"] == pytest.approx(rejected_rewards.mean().item(), rel=1e-5)

    gradients = mx.grad(lambda c, r: orpo_loss(c, r, BETA).loss.sum(), argnums=(0, 1))
    got = gradients(mx.array(logps[0]), mx.array(logps[1]))
    np.testing.assert_allclose(got[0], chosen.grad.numpy(), **close)
    np.testing.assert_allclose(got[1], rejected.grad.numpy(), **close)


class Saying(nn.Module):
    """A model that says these logits; the last position predicts a token that nobody has."""

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.layers: list[nn.Module] = []
        self._logits = logits

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        return mx.array(self._logits[:, : inputs.shape[1]])


def test_mean_logps_are_those_of_trls_get_batch_logps() -> None:
    random = np.random.default_rng(0)
    shapes = [(5, 9, 3), (1, 1, 1), (12, 2, 7), (3, 1, 17)]
    pairs = [
        EncodedPair(*(random.integers(0, tiny.VOCABULARY, n).astype(np.int32) for n in shape), "")
        for shape in shapes
    ]
    sequences = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    length = max(len(prompt) + len(response) for prompt, response in sequences)
    labels = np.full((len(sequences), length), IGNORED)
    for label, (prompt, response) in zip(labels, sequences, strict=True):
        label[len(prompt) : len(prompt) + len(response)] = response
    logits = 5 * random.standard_normal((*labels.shape, tiny.VOCABULARY)).astype(np.float32)
    expected = ORPOTrainer.get_batch_logps(
        torch.tensor(logits), torch.tensor(labels), average_log_prob=True
    ).numpy()

    path = plain_path(Saying(logits))
    batch = arrays_of(path.batch(pairs, range(len(pairs)), "response"))
    outputs = pair_outputs(path, batch, beta=BETA)
    got = np.concatenate([np.array(outputs.chosen_logps), np.array(outputs.rejected_logps)])
    # float32 log-probs of up to 30, where the spacing is 2e-6.
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def torch_llama(model: nn.Module, config: dict[str, Any]) -> LlamaForCausalLM:
    """transformers' llama with the weights of ours, in float32."""
    settings = {k: v for k, v in config.items() if k not in ("model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    twin = LlamaForCausalLM(LlamaConfig(**settings, rope_parameters=rope, bos_token_id=None))
    weights = {n: torch.tensor(np.array(w)) for n, w in tree_flatten(model.parameters())}
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert missing == (["lm_head.weight"] if config["tie_word_embeddings"] else [])
    twin.tie_weights()
    return twin


class Kept(TrainerCallback):
    """The gradients of the first step as they are before the optimizer, and what is logged."""

    def __init__(self, model: LlamaForCausalLM):
        self.model = model
        self.gradients: dict[str, np.ndarray] = {}
        self.logged: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, weight in self.model.named_parameters():
            self.gradients[name] = weight.grad.numpy().copy()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        self.logged = {**logs, **self.logged}


def texts() -> dict[str, str]:
    """A pair as text, each response with the end token that TRL would otherwise add."""
    pair = tiny.toy_pair(3)
    return {
        "prompt": f"<|im_start|>user\n{pair['prompt']}<|im_end|>\n<|im_start|>assistant\n",
        "chosen": pair["chosen"] + "<|im_end|>",
        "rejected": pair["rejected"] + " or later still<|im_end|>",
    }


def encoded(tokenizer: PreTrainedTokenizerFast) -> EncodedPair:
    ids = {n: tokenizer.encode(t, add_special_tokens=False) for n, t in texts().items()}
    return EncodedPair(**{n: np.array(i, dtype=np.int32) for n, i in ids.items()}, location="")


def trl_trainer(twin: LlamaForCausalLM, folder: Path) -> ORPOTrainer:
    """TRL's trainer for one step on one pair, without dropout, clipping or half precision."""
    config = ORPOConfig(
        output_dir=str(folder), beta=BETA, per_device_train_batch_size=1, max_steps=1,
        bf16=False, use_cpu=True, activation_checkpointing=False, max_grad_norm=0.0,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    return ORPOTrainer(
        model=twin,
        args=config,
        train_dataset=Dataset.from_list([texts()]),
        processing_class=tiny.build_tokenizer(),
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_step_on_prompt_and_response_is_trls(
    tied: bool, plain: bool, tmp_path: Path
) -> None:
    model, config = tiny.build_model(tie_word_embeddings=tied)
    pair = encoded(tiny.build_tokenizer())
    twin = torch_llama(model, config)
    tokens = np.concatenate([pair.prompt, pair.rejected])[None]
    with torch.no_grad():
        expected_logits = twin(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    # float32 through three layers in two libraries.
    np.testing.assert_allclose(model(mx.array(tokens)), expected_logits, atol=1e-5, rtol=0)

    trainer = trl_trainer(twin, tmp_path)
    row = trainer.train_dataset[0]
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        assert row[f"{name}_input_ids"] == [*pair.prompt, *response]
        assert row[f"{name}_labels"] == [IGNORED] * len(pair.prompt) + list(response)
    kept = Kept(twin)
    trainer.add_callback(kept)
    trainer.train()

    path = plain_path(model) if plain else fast_path(model)[0]
    batch = arrays_of(path.batch([pair], [0], "prompt+response"))
    metrics: dict[str, mx.array] = {}

    def first_step() -> mx.array:
        outputs = pair_outputs(path, batch, beta=BETA)
        metrics.update(pair_metrics(*outputs, BETA))
        return outputs.losses.loss.mean()

    loss, gradients = nn.value_and_grad(model, first_step)()
    # The wish is 1e-4; float32 in two libraries gives 1e-6.
    assert loss.item() == pytest.approx(kept.logged["loss"], abs=1e-5)
    assert kept.logged["log_odds_ratio"] < 0
    for name, values in metrics.items():
        if name != "saturated_pairs":
            assert values.item() == pytest.approx(kept.logged[name], abs=1e-5), name
    ours = dict(tree_flatten(gradients))
    assert ours.keys() == kept.gradients.keys()
    for name, expected in kept.gradients.items():
        # As above, relative to the largest entry of the gradient.
        allowed = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, atol=allowed, rtol=0, err_msg=name)
