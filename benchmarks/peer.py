"""mlx-lm-lora as a contestant: its trainer, its batches, its loss.

Run by worker.py in an interpreter that has mlx-lm-lora and no orpo_mlx.
"""

import importlib
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

UNBOUNDED = 1 << 30
BLOCK = 512
# ORPOTrainingArgs' own; training asserts that it is.
_RECURRENCE_CHUNK = 64


def _orpo_trainer() -> Any:
    """The peer's module; where mlx reports no working-set size, which it needs, one is given."""
    device_info_of_mlx = mx.device_info

    def device_info(*arguments: Any) -> dict[str, Any]:
        return {"max_recommended_working_set_size": UNBOUNDED, **device_info_of_mlx(*arguments)}

    mx.device_info = device_info  # type: ignore[assignment]
    return importlib.import_module("mlx_lm_lora.trainer.orpo_trainer")


def _cross_entropy_in_blocks(
    logits: mx.array,  # (B, T, V)
    targets: mx.array,  # (B, T)
    reduction: str,
) -> mx.array:
    """MLX's cross entropy, its sum over the vocabulary taken in blocks.

    On the CPU MLX adds up term by term, which is off by 2e-5 over 50,000 float32 terms: enough
    to hide whether two tools compute the same loss.
    """
    assert reduction == "none"
    padding = [(0, 0), (0, 0), (0, -logits.shape[-1] % BLOCK)]
    blocks = mx.pad(logits, padding, constant_values=-mx.inf)
    blocks = blocks.reshape(*logits.shape[:2], -1, BLOCK)  # (B, T, V / BLOCK, BLOCK)
    total = mx.logsumexp(mx.logsumexp(blocks, axis=-1), axis=-1)
    return total - mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


class Peer:
    """The model as the peer's `from_pretrained` makes it: frozen, LoRA by mlx-lm."""

    def __init__(self, job: dict[str, Any]):
        self._job = job
        self._trainer = _orpo_trainer()
        self._iterate = self._trainer.iterate_orpo_batches
        self.model, _ = load_model(Path(job["model"]))
        self.model.freeze()
        config = {"rank": job["rank"], "scale": job["scale"], "dropout": 0.0, "keys": job["keys"]}
        linear_to_lora_layers(self.model, job["num_layers"], config)
        self.model.load_weights(job["adapter"], strict=False)
        self.model.train()
        self._batches = self._batches_of(job["pairs"])
        # As its trainer does before the first step.
        if self._trainer.model_uses_recurrence(self.model):
            self._trainer.enable_memory_safe_recurrences(_RECURRENCE_CHUNK)

    def fixed(self, file: str) -> dict[str, Any]:
        """Facts, and loss and gradients of the first pairs.

        `orpo_loss` is the mean over pairs of -chosen + beta * -log_sigmoid(log odds), of means
        over response tokens: the same quantity, complete.
        """
        job = self._job
        loss, gradients = self._fixed_loss()
        share = self._recurrence_share()
        mx.save_safetensors(file, gradients)
        theirs = nn.losses.cross_entropy
        nn.losses.cross_entropy = _cross_entropy_in_blocks
        try:
            loss_in_blocks, same_sums = self._fixed_loss()
        finally:
            nn.losses.cross_entropy = theirs
        mx.save_safetensors(file.replace(".safetensors", "_in_blocks.safetensors"), same_sums)
        # Chosen and rejected run one after the other, the head at every position.
        calls = [(b[0].shape[0], b[0].shape[1] - 1, 0) for b in self._batches for _ in range(2)]
        return {
            "loss": loss,
            "loss_in_blocks": loss_in_blocks,
            "trainable": sum(v.size for v in gradients.values()),
            "quantized": [p for p, m in self.model.named_modules() if "scales" in m],
            "compiled": True,  # its step always goes through mx.compile
            "kept_trunk": False,
            "layout": "padded",
            "recomputed": job["num_layers"] if job["grad_checkpoint"] else 0,
            "calls": calls,
            "scored": sum(n * t for n, t, _ in calls),
            "steps": len(self._batches),
            "version": version("mlx-lm-lora"),
            **share,
        }

    def _recurrence_share(self) -> dict[str, float]:
        """The share of a step that gated delta layers take, by leaving their recurrence out."""
        if not self._trainer.model_uses_recurrence(self.model):
            return {}
        shared: Any = importlib.import_module("mlx_lm.models.gated_delta")
        code: Any = importlib.import_module("mlx_lm.models.qwen3_5")
        assert shared._mlx_lm_lora_memory_safe, "the trainer's recurrences are not in place"

        def seconds() -> float:
            start = time.perf_counter()
            self._fixed_loss()
            return time.perf_counter() - start

        whole, update = seconds(), code.gated_delta_update
        code.gated_delta_update = lambda q, k, v, *rest, **_: (v, None)
        try:
            return {"recurrence_share": 1 - seconds() / whole}
        finally:
            code.gated_delta_update = update

    def _fixed_loss(self) -> tuple[float, dict[str, mx.array]]:
        job = self._job
        (batch,) = self._batches_of(job["pairs"][: job["batch_size"]])

        def loss_of(model: nn.Module) -> Any:
            return self._trainer.orpo_loss_from_model(model, *batch, beta=job["beta"])[0]

        loss, gradients = nn.value_and_grad(self.model, loss_of)(self.model)
        mx.eval(loss, gradients)
        return loss.item(), dict(tree_flatten(gradients))

    def train(self, between: Callable[[list[float], int], None]) -> None:
        """Its `train_orpo`, every pass over the same batches; its own order is random."""
        job, trainer, steps = self._job, self._trainer, len(self._batches)
        done = 0

        def iterate(*_: Any, **__: Any) -> Iterator[Any]:
            return iter([self._batches[done % steps]])

        class Reported:
            def __init__(self) -> None:
                self.seconds: list[float] = []
                self.start = time.perf_counter()

            def on_train_loss_report(self, info: dict[str, Any]) -> None:
                nonlocal done
                self.seconds.append(time.perf_counter() - self.start)
                done += 1
                if done % steps == 0:
                    between(self.seconds, mx.get_peak_memory())
                    self.seconds = []
                    mx.reset_peak_memory()
                self.start = time.perf_counter()

        trainer.iterate_orpo_batches = iterate
        arguments = trainer.ORPOTrainingArgs(
            batch_size=job["batch_size"],
            iters=UNBOUNDED,
            steps_per_report=1,
            steps_per_save=UNBOUNDED,
            max_seq_length=UNBOUNDED,
            beta=job["beta"],
            grad_checkpoint=job["grad_checkpoint"],
            adapter_file=job["scratch"] + "/peer",
        )
        assert arguments.recurrence_chunk_size == _RECURRENCE_CHUNK
        optimizer = optimizers.AdamW(learning_rate=job["learning_rate"], weight_decay=0.0)
        mx.reset_peak_memory()
        trainer.train_orpo(
            self.model,
            optimizer,
            self._dataset(job["pairs"]),
            args=arguments,
            training_callback=Reported(),
        )

    def _batches_of(self, pairs: list[Any]) -> list[Any]:
        """The peer's own batches: sorted by the chosen length, padded to the longest of a batch."""
        return list(self._iterate(self._dataset(pairs), self._job["batch_size"], UNBOUNDED))

    def _dataset(self, pairs: list[Any]) -> list[dict[str, Any]]:
        return [
            {
                "chosen": prompt + chosen,
                "rejected": prompt + rejected,
                "chosen_prompt_length": len(prompt),
                "rejected_prompt_length": len(prompt),
            }
            for prompt, chosen, rejected in pairs
        ]
