"""How far a path's log-probs and gradients are from the float64 twin of the model's own forward,
and how far float32 may be."""

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

from orpo_mlx.data.batching.prefix_tree import Batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.model.tree_forward import hidden_states
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.training import forward_path as paths
from orpo_mlx.training.outputs import pair_outputs
from tests.model.family_cases import LAYOUT, PAIRS, model_of
from tests.twin import CAP, allowed_error, in_float64

BETA = 0.5


class Values(NamedTuple):
    """Log-probs of each response's tokens, chosen of all pairs first, and the loss's gradient."""

    logps: list[np.ndarray]
    gradient: dict[str, np.ndarray]


class Errors(NamedTuple):
    logps: float  # largest difference
    gradient: float  # largest relative L2 of a tensor


class Shares(NamedTuple):
    """Errors, each divided by what is allowed."""

    logps: float
    gradient: float

    @property
    def right(self) -> bool:
        return self.logps <= 1 and self.gradient <= 1

    @property
    def wrong(self) -> bool:
        """Both so far off that no rounding explains it; a NaN is neither right nor wrong."""
        return self.logps >= 10 and self.gradient >= 10


class Judge(NamedTuple):
    """What is right, in float64, and how far the plain path is from it in float32."""

    twin: Values
    plain: Errors

    @property
    def allowed(self) -> Errors:
        return Errors(*map(allowed_error, self.plain))

    def shares(self, values: Values) -> Shares:
        errors = errors_of(values, self.twin)
        return Shares(*(e / a for e, a in zip(errors, self.allowed, strict=True)))


def judge_of(model: nn.Module, pairs: list[EncodedPair] = PAIRS) -> Judge:
    plain = reference(model, pairs)
    with in_float64(model):
        twin = reference(model, pairs)
    arrays = [*twin.logps, *twin.gradient.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
    judge = Judge(twin, errors_of(plain, twin))
    assert max(judge.plain) < CAP, judge.plain
    return judge


def reference(model: nn.Module, pairs: list[EncodedPair] = PAIRS) -> Values:
    """With the model's own call, see `own_logps`."""

    def loss(weights: dict) -> tuple[mx.array, list[mx.array]]:
        model.update(weights)
        logps = own_logps(model, pairs)
        means = mx.stack([part.mean() for part in logps])
        return orpo_loss(means[0::2], means[1::2], BETA).loss.mean(), logps[0::2] + logps[1::2]

    return _values(model, loss, lambda logps: logps)


def own_logps(model: nn.Module, pairs: list[EncodedPair]) -> list[mx.array]:
    """Of chosen and rejected in turn: one uncached forward of right-padded rows, nothing shared."""
    responses = [(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)]
    rows = [np.concatenate(parts) for parts in responses]
    longest = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    outputs = list(model(mx.array(padded)[:, :-1]))
    logps = []
    for (prompt, response), logits in zip(responses, outputs, strict=True):
        scored = logits[len(prompt) - 1 :][: len(response)].astype(mx.float32)
        log_softmax = scored - mx.logsumexp(scored, axis=-1, keepdims=True)
        logps.append(mx.take_along_axis(log_softmax, mx.array(response)[:, None], axis=-1)[:, 0])
    return logps


def by_path(
    model: nn.Module, path: paths.ForwardPath, batch: Batch, *, key: mx.array | None = None
) -> Values:
    """The same from the path's token log-probs, as a training step takes them."""
    calls, targets, *rest = paths.arrays_of(batch)

    def loss(trained: dict) -> tuple[mx.array, mx.array]:
        model.update(trained)
        if key is not None:
            lora.reset_dropout(model, key)
        logps = path.token_logps(calls, targets)
        given = SimpleNamespace(token_logps=lambda calls, targets: logps)
        outputs = pair_outputs(given, (calls, targets, *rest), beta=BETA)
        return outputs.losses.loss.mean(), logps

    with path.differentiated():
        return _values(
            model, loss, lambda logps: [logps[mx.array(np.flatnonzero(w))] for w in batch.weights]
        )


def _values(model: nn.Module, loss: Callable, by_response: Callable) -> Values:
    before = model.trainable_parameters()
    try:
        (_, logps), gradient = mx.value_and_grad(loss)(before)
        mx.eval(logps, gradient)
    finally:
        model.update(before)
    tensors = {name: np.array(value) for name, value in tree_flatten(gradient)}
    return Values([np.array(part) for part in by_response(logps)], tensors)


def errors_of(values: Values, expected: Values) -> Errors:
    pairs = zip(values.logps, expected.logps, strict=True)
    logps = [np.abs(f.astype(np.float64) - e).max() for f, e in pairs]
    assert values.gradient.keys() == expected.gradient.keys()
    gradient = []
    for name, wanted in expected.gradient.items():
        size = np.linalg.norm(wanted)
        assert size > 0, f"{name}: nothing would be compared"
        gradient.append(np.linalg.norm(values.gradient[name] - wanted) / size)
    # numpy's max passes on a NaN, Python's may not.
    return Errors(float(np.max(logps)), float(np.max(gradient)))


@contextmanager
def only_the_tree() -> Iterator[list[list[int]]]:
    """The parents of the calls of every run through the tree; the plain forward is forbidden."""
    seen: list[list[int]] = []

    def counted(model: nn.Module, parts: Any, calls: Any) -> mx.array:
        seen.append([call.parent for call in calls])
        return hidden_states(model, parts, calls)

    def forbidden(*arguments: Any) -> mx.array:
        raise AssertionError("the plain path was used")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "hidden_states", counted)
        patch.setattr(paths, "plain_logits", forbidden)
        yield seen


def through_the_tree(
    model: nn.Module, *, checkpoint: bool = False, key: mx.array | None = None
) -> Values:
    """PAIRS on the fast path, which must exist and must be the one that is used."""
    path, reason = paths.fast_path(model, checkpoint=checkpoint)
    assert reason is None, reason
    assert path.layout == "tree", path.layout
    batch = path.batch(PAIRS, range(len(PAIRS)), "response")
    with only_the_tree() as seen:
        values = by_path(model, path, batch, key=key)
    assert seen == [[parent for *_, parent in LAYOUT]], seen
    return values


@cache
def judge(family: str, bits: int | None) -> Judge:
    return judge_of(model_of(family, bits))


@cache
def compared(family: str, bits: int | None, checkpoint: bool) -> Shares:
    values = through_the_tree(model_of(family, bits), checkpoint=checkpoint)
    return judge(family, bits).shares(values)
