"""AdamW on float32 copies of the trained weights, its schedule, and clipping."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path


class Optimizer:
    """Updates a model from gradients; holds what a checkpoint must hold.

    Weights in half precision are trained as float32 copies, else small updates round to nothing.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float, max_grad_norm: float):
        self._model = model
        self._max_grad_norm = max_grad_norm
        self._adamw = optimizers.AdamW(0.0, weight_decay=weight_decay, bias_correction=True)
        self.weights = tree_map(lambda w: w.astype(mx.float32), model.trainable_parameters())
        self._dtypes = tree_map(lambda w: w.dtype, model.trainable_parameters())
        self._adamw.init(self.weights)

    def update(self, gradients: Any, learning_rate: float) -> float:
        """One step; returns the gradient's norm before clipping, and does nothing if not finite."""
        gradients = tree_map(lambda g: g.astype(mx.float32), gradients)
        limit = self._max_grad_norm or math.inf
        gradients, total = optimizers.clip_grad_norm(gradients, limit)
        norm = float(np.array(total))
        if math.isfinite(norm):
            self._adamw.learning_rate = learning_rate
            self.weights = self._adamw.apply_gradients(gradients, self.weights)
            self._put_back()
            mx.eval(self.weights, self._adamw.state, self._model.trainable_parameters())
        return norm

    def model_weights(self) -> dict[str, mx.array]:
        """The trained weights by name, in the model's dtype."""
        return dict(tree_flatten(self._model.trainable_parameters()))

    def state(self) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
        """Float32 weights and AdamW's moments, by name."""
        return dict(tree_flatten(self.weights)), dict(tree_flatten(self._adamw.state))

    def restore(self, weights: dict[str, mx.array], moments: dict[str, mx.array]) -> None:
        """Restore what `state` returned."""
        # By the existing trees: models keep empty branches in theirs, which names do not show.
        self.weights = tree_map_with_path(lambda name, _: weights[name], self.weights)
        self._adamw.state = tree_map_with_path(lambda name, _: moments[name], self._adamw.state)
        self._put_back()

    def _put_back(self) -> None:
        self._model.update(tree_map(lambda w, d: w.astype(d), self.weights, self._dtypes))


def learning_rate_at(step: int, *, peak: float, steps: int, warmup: float, schedule: str) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule down to 0."""
    warmup_steps = round(warmup * steps) if warmup < 1 else int(warmup)
    warmup_steps = min(warmup_steps, steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
