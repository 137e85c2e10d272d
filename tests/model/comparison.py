"""How far a path's log-probs and gradients are from those of the model's own forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.data.batching import Batch
from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.model.forward import hidden_states
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training import path as paths
from orpo_mlx.training.evaluate import pair_outputs
from tests.model.family_cases import LAYOUT, PAIRS, model_of

# Float32, the same sums in another order. Seen: 6e-6 and 7e-6; planted faults: from 2e-3 and 3e-2.
LOGP_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # relative L2 of each tensor
BETA = 0.5


class Values(NamedTuple):
    """Log-probs of each response's tokens, chosen of all pairs first, and the loss's gradient."""

    logps: list[np.ndarray]
    gradient: dict[str, np.ndarray]


class Errors(NamedTuple):
    logps: float  # largest difference
    gradient: float  # largest relative L2 of a tensor

    @property
    def within(self) -> bool:
        return self.logps <= LOGP_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def reference(model: nn.Module, pairs: list[EncodedPair] = PAIRS) -> Values:
    """One unpadded, uncached forward of each response alone by the model's own call."""

    def loss(weights: dict) -> tuple[mx.array, list[mx.array]]:
        model.update(weights)
        logps = []
        for prompt, response in [(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)]:
            ids = mx.array(np.concatenate([prompt, response]))
            logits = model(ids[None, :-1])[0].astype(mx.float32)
            log_softmax = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            scored = log_softmax[len(prompt) - 1 :]
            logps.append(mx.take_along_axis(scored, mx.array(response)[:, None], axis=-1)[:, 0])
        means = mx.stack([part.mean() for part in logps])
        return orpo_loss(means[0::2], means[1::2], BETA).loss.mean(), logps[0::2] + logps[1::2]

    return _values(model, loss, lambda logps: logps)


def by_path(
    model: nn.Module, path: paths.ForwardPath, batch: Batch, *, key: mx.array | None = None
) -> Values:
    """The same from the path's token log-probs, as a training step takes them."""
    calls, targets, weights, nll = paths.arrays_of(batch)

    def loss(trained: dict) -> tuple[mx.array, mx.array]:
        model.update(trained)
        if key is not None:
            lora.reset_dropout(model, key)
        logps = path.token_logps(calls, targets)
        given = SimpleNamespace(token_logps=lambda calls, targets: logps)
        outputs = pair_outputs(given, (calls, targets, weights, nll), beta=BETA)
        return outputs.losses.loss.mean(), logps

    with path.differentiated():
        return _values(model, loss, lambda logps: [logps[mx.array(np.flatnonzero(w))]
                                                   for w in batch.weights])  # fmt: skip


def _values(model: nn.Module, loss: Callable, by_response: Callable) -> Values:
    before = model.trainable_parameters()
    try:
        (_, logps), gradient = mx.value_and_grad(loss)(before)
        mx.eval(logps, gradient)
    finally:
        model.update(before)
    tensors = {name: np.array(value) for name, value in tree_flatten(gradient)}
    return Values([np.array(part) for part in by_response(logps)], tensors)


def errors_of(found: Values, expected: Values) -> Errors:
    pairs = zip(found.logps, expected.logps, strict=True)
    logps = max(float(np.abs(f - e).max()) for f, e in pairs)
    assert found.gradient.keys() == expected.gradient.keys()
    gradient = 0.0
    for name, wanted in expected.gradient.items():
        size = np.linalg.norm(wanted)
        assert size > 0, f"{name}: nothing would be compared"
        gradient = max(gradient, float(np.linalg.norm(found.gradient[name] - wanted) / size))
    # A NaN is within no tolerance.
    return Errors(logps, gradient)


@contextmanager
def only_the_tree() -> Iterator[list[list[int]]]:
    """The parents of the calls of every run through the tree; the plain forward is forbidden."""
    seen: list[list[int]] = []

    def counted(model: nn.Module, parts: Any, calls: Any) -> mx.array:
        seen.append([call.parent for call in calls])
        return hidden_states(model, parts, calls)

    def forbidden(*arguments: Any) -> mx.array:
        raise AssertionError("the plain path was taken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "hidden_states", counted)
        patch.setattr(paths, "plain_logits", forbidden)
        yield seen


def through_the_tree(
    model: nn.Module, *, checkpoint: bool = False, key: mx.array | None = None
) -> Values:
    """PAIRS on the fast path, which must exist and must be the one that is taken."""
    path, reason = paths.fast_path(model, checkpoint=checkpoint)
    assert reason is None, reason
    assert path.layout == "tree", path.layout
    batch = path.batch(PAIRS, range(len(PAIRS)), "response")
    with only_the_tree() as seen:
        values = by_path(model, path, batch, key=key)
    assert seen == [[parent for *_, parent in LAYOUT]], seen
    return values


@cache
def expected_of(family: str, bits: int | None) -> Values:
    return reference(model_of(family, bits))


@cache
def compared(family: str, bits: int | None, checkpoint: bool) -> Errors:
    found = through_the_tree(model_of(family, bits), checkpoint=checkpoint)
    return errors_of(found, expected_of(family, bits))
