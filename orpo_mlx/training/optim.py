"""Optimizers on float32 copies of the trained weights, weight decay, clipping, and schedules."""

import math
import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

# As transformers' Trainer.get_decay_parameter_names has them, and MLX's `biases`.
SPARED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
# Steps over which the rate falls without a warm-up: transformers' get_inverse_sqrt_schedule.
TIMESCALE = 10_000


def decays(name: str, weight: mx.array) -> bool:
    """Whether weight decay acts on a weight: not on norms, biases and others of one dimension."""
    return weight.ndim > 1 and not SPARED.search(name.lower())


class Optimizer:
    """Updates a model from gradients; holds what a checkpoint must hold.

    Weights in half precision are trained as float32 copies, else small updates round to nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: str = "adamw",  # or adafactor, lion
        weight_decay: float,
        max_grad_norm: float,
        decay_all: bool = False,  # norms and biases, too
    ):
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._weight_decay, self._decay_all = weight_decay, decay_all
        self._rule = _rule(kind)
        self.weights = tree_map(lambda w: w.astype(mx.float32), model.trainable_parameters())
        self._dtypes = tree_map(lambda w: w.dtype, model.trainable_parameters())
        self._rule.init(self.weights)

    def update(self, gradients: Any, learning_rate: float) -> float:
        """One step; returns the gradient's norm before clipping, and does nothing if not finite."""
        gradients = tree_map(lambda g: g.astype(mx.float32), gradients)
        limit = self._max_grad_norm or math.inf
        gradients, total = optimizers.clip_grad_norm(gradients, limit)
        norm = float(np.array(total))
        if math.isfinite(norm):
            self._rule.learning_rate = learning_rate
            self.weights = self._rule.apply_gradients(gradients, self._decayed())
            self._put_back()
            mx.eval(self.weights, self._rule.state, self._model.trainable_parameters())
        return norm

    def _decayed(self) -> Any:
        """The weights, those that decay made smaller by rate times decay (decoupled)."""
        factor = 1 - self._rule.learning_rate * self._weight_decay

        def shrink(name: str, weight: mx.array) -> mx.array:
            return weight * factor if self._decay_all or decays(name, weight) else weight

        return tree_map_with_path(shrink, self.weights) if self._weight_decay else self.weights

    def model_weights(self) -> dict[str, mx.array]:
        """The trained weights by name, in the model's dtype."""
        return dict(tree_flatten(self._model.trainable_parameters()))

    def state(self) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
        """Float32 weights and the optimizer's moments, by name."""
        return dict(tree_flatten(self.weights)), dict(tree_flatten(self._rule.state))

    def restore(self, weights: dict[str, mx.array], moments: dict[str, mx.array]) -> None:
        """Restore what `state` returned."""
        # By the existing trees: models keep empty branches in theirs, which names do not show.
        self.weights = tree_map_with_path(lambda name, _: weights[name], self.weights)
        self._rule.state = tree_map_with_path(lambda name, _: moments[name], self._rule.state)
        self._put_back()

    def _put_back(self) -> None:
        self._model.update(tree_map(lambda w, d: w.astype(d), self.weights, self._dtypes))


def _rule(kind: str) -> optimizers.Optimizer:
    """MLX's optimizer, whose rate is about how far a step moves a weight, whichever it is.

    Adafactor runs without the first moment and without its relative steps: scaled by its own size,
    an adapter's matrix that begins at zero would hardly move. Decay is for the caller.
    """
    if kind == "adafactor":
        return optimizers.Adafactor(0.0, scale_parameter=False, relative_step=False)
    if kind == "lion":
        return optimizers.Lion(0.0)
    return optimizers.AdamW(0.0, weight_decay=0.0, bias_correction=True)


def learning_rate_at(step: int, *, peak: float, steps: int, warmup: float, schedule: str) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule.

    Linear and cosine end at 0; inverse_sqrt falls by the root of the steps, whatever their number.
    """
    warmup_steps = round(warmup * steps) if warmup < 1 else int(warmup)
    warmup_steps = min(warmup_steps, steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        timescale = warmup_steps or TIMESCALE
        return peak * math.sqrt(timescale / (step - warmup_steps + timescale))
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
