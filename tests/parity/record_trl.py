"""How trl.json was made: `python -m tests.parity.record_trl`, where trl has trl.experimental.orpo.

No test runs this: TRL drops experimental trainers, and what it computed stays what we compare with.
"""

import json
import os
import tempfile
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from orpo_mlx import backend

backend.prepare()

import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

from tests import tiny  # noqa: E402
from tests.parity import trl_inputs  # noqa: E402
from tests.parity.trl_inputs import BETA, IGNORED, projections  # noqa: E402

PASSING = ("runtime", "per_second", "epoch", "grad_norm", "learning_rate", "flos", "train_loss")


def odds_ratio() -> dict[str, Any]:
    """TRL's method, without the trainer that it asks only for beta and a device."""
    trainer = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = (torch.tensor(v, requires_grad=True) for v in trl_inputs.mean_logps())
    ratios, chosen_rewards, rejected_rewards, ratio, odds = ORPOTrainer.odds_ratio_loss(
        trainer, chosen, rejected
    )
    # TRL returns +beta * log sigmoid, and subtracts its mean from the NLL.
    (-chosen - ratios).sum().backward()
    return {
        "ratios": ratios.tolist(),
        "gradients": [chosen.grad.tolist(), rejected.grad.tolist()],
        "log_odds_ratio": ratio.item(),
        "log_odds_chosen": odds.item(),
        "rewards/chosen": chosen_rewards.mean().item(),
        "rewards/rejected": rejected_rewards.mean().item(),
    }


def batch_logps() -> list[float]:
    logits, labels = torch.tensor(trl_inputs.logits()), torch.tensor(trl_inputs.labels())
    logps = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    return [float(value) for value in logps]


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
        self.gradients: dict[str, list[float]] = {}
        self.logged: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, weight in self.model.named_parameters():
            self.gradients[name] = projections(weight.grad.numpy())

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


def first_step(tied: bool) -> dict[str, Any]:
    """One step of TRL's trainer on one pair, without dropout, clipping or half precision."""
    twin = torch_llama(*trl_inputs.llama(tied))
    with tempfile.TemporaryDirectory() as folder:
        config = ORPOConfig(
            output_dir=folder,
            beta=BETA,
            per_device_train_batch_size=1,
            max_steps=1,
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        data = Dataset.from_list([texts()])
        trainer = ORPOTrainer(
            model=twin, args=config, train_dataset=data, processing_class=tiny.build_tokenizer()
        )
        kept = Kept(twin)
        trainer.add_callback(kept)
        trainer.train()
    row = trainer.train_dataset[0]
    prompt = sum(label == IGNORED for label in row["chosen_labels"])
    logged = {k: v for k, v in kept.logged.items() if not any(word in k for word in PASSING)}
    return {
        "prompt": row["chosen_input_ids"][:prompt],
        "chosen": row["chosen_input_ids"][prompt:],
        "rejected": row["rejected_input_ids"][prompt:],
        "logged": logged,
        "gradients": kept.gradients,
    }


def main() -> None:
    record = {
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
        "odds_ratio_loss": odds_ratio(),
        "get_batch_logps": batch_logps(),
        "first_step": {"tied": first_step(True), "untied": first_step(False)},
    }
    text = json.dumps(record, indent=1)
    trl_inputs.RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
