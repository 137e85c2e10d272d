"""After a loss or gradient that is NaN or infinite: which part of the model was so first.

Runs only then, on one pair at a time, through the model's own forward; changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import why_not_finite
from orpo_mlx.model.layer_hooks import block_calls, evaluating
from orpo_mlx.objective.logps import token_logps
from orpo_mlx.objective.loss import orpo_loss
from orpo_mlx.run_folder.checkpoints import what_is_kept
from orpo_mlx.training.forward_path import ForwardPath
from orpo_mlx.training.step import NotFiniteError, TrainStep

MOST_SKIPPED = 5  # steps in a row whose update is left out, before a run ends


def skip_text(
    error: NotFiniteError, train_step: TrainStep, step: int, counts: tuple[int, int]
) -> str:
    """What a run reports of a step, from 0, whose update it leaves out."""
    total, in_a_row = counts
    count = f"{total} so far, {in_a_row} in a row; {MOST_SKIPPED} in a row end the run"
    return f"{_explain(error, train_step, step)} Its update is left out ({count})."


def end_error(
    error: NotFiniteError, train_step: TrainStep, step: int, *, trained: bool
) -> OrpoError:
    """What ends a run at step `step`, from 0; before any update the rate cannot be the cause."""
    if not trained:
        return OrpoError(_explain_untrained(error, train_step, step))
    config = train_step.config
    again = (
        f"It is the {MOST_SKIPPED}th step in a row whose update would be left out."
        if config.on_nan == "skip"
        else "--resume meets it again; --resume --on-nan skip leaves its update out."
    )
    return OrpoError(
        f"{_explain(error, train_step, step)} Lower --learning-rate, or look at these pairs. "
        f"{again} {what_is_kept(config.output)}"
    )


def held_out_error(
    path: ForwardPath, valid: Sequence[EncodedPair], losses: np.ndarray, run: TrainConfig, step: int
) -> OrpoError:
    """What ends a run whose held-out losses after `step` steps are not all finite."""
    bad = np.flatnonzero(~np.isfinite(losses))
    locations = _locations(valid, bad)
    if step == 0:
        return OrpoError(
            f"The base gives NaN or infinite numbers for {locations}: {why_not_finite(path.model)}."
        )
    part = first_part(path, valid[int(bad[0])], beta=run.beta, nll_on=run.nll_on)
    return OrpoError(
        f"The held-out loss is not finite after step {step} (pairs: {locations}). The first part "
        f"that is not finite: {part}. {what_is_kept(run.output)}"
    )


def _explain(error: NotFiniteError, train_step: TrainStep, step: int) -> str:
    """Which pairs of step `step`, from 0, were not finite, and which part was so first."""
    pairs, config, indices = train_step.pairs, train_step.config, error.indices
    if error.what == "gradient":
        indices = pairs_of_gradient(indices, lambda i: train_step.pair_gradient(i, step))
        part = first_gradient(error.gradients)
    else:
        pair = pairs[int(indices[0])]
        part = first_part(train_step.path, pair, beta=config.beta, nll_on=config.nll_on)
    return (
        f"The {error.what} is not finite at step {step + 1} "
        f"(pairs: {_locations(pairs, indices)}). The first part that is not finite: {part}."
    )


def _explain_untrained(error: NotFiniteError, train_step: TrainStep, step: int) -> str:
    """The same before any update, where the learning rate cannot be the cause."""
    locations = _locations(train_step.pairs, error.indices)
    if error.what == "loss":
        return (
            f"The base gives NaN or infinite numbers for {locations}: "
            f"{why_not_finite(train_step.model)}."
        )
    return (
        f"The gradient is not finite at step {step + 1} (pairs: {locations}), before anything has "
        "been trained: the learning rate is not the cause. The first part that is not finite: "
        f"{first_gradient(error.gradients)}. Look at these pairs, or train other layers "
        "(--target-modules, --num-layers)."
    )


def _locations(pairs: Sequence[EncodedPair], indices: np.ndarray) -> str:
    """Where the pairs at `indices` come from."""
    return ", ".join(dict.fromkeys(pairs[int(i)].location for i in indices))


def first_part(path: ForwardPath, pair: EncodedPair, *, beta: float, nll_on: str) -> str:
    """The first part of the model's own forward of a pair that is not finite, in words."""
    with evaluating(path.model):
        try:
            part = _first_weight(path.model) or _first_of_pair(path.model, pair, beta, nll_on)
        except RuntimeError as error:  # no memory is left for the model's own forward
            return f"not known, it could not be computed again ({error})"
    return part or (
        "in the training pass alone: the model's own forward of the pair is finite"
        + ("" if path.parts is None else " (see what --plain gives)")
    )


def first_gradient(gradients: Any) -> str:
    """The parameter whose gradient was not finite first: gradients run from the last block down."""
    bad = [name for name, value in tree_flatten(gradients) if not _finite(value)]
    if not bad:
        return "the norm of the gradient, whose parts are finite"
    more = f" and of {len(bad) - 1} other parameter{'s' * (len(bad) > 2)}" * (len(bad) > 1)
    return f"the gradient of {bad[-1]}{more}"


def pairs_of_gradient(indices: np.ndarray, gradient_of: Callable[[int], Any]) -> np.ndarray:
    """Of a step's pairs, those whose own gradient is not finite; all, where each is alone."""
    bad = [not all(_finite(v) for _, v in tree_flatten(gradient_of(int(i)))) for i in indices]
    return indices[bad] if any(bad) else indices


def _finite(value: Any) -> bool:
    """Whether all numbers of an array are finite; what is not an array of floats is."""
    if not isinstance(value, mx.array) or not mx.issubdtype(value.dtype, mx.floating):
        return True
    return bool(mx.isfinite(value).all().item())


def _first_weight(model: nn.Module) -> str:
    weights = tree_flatten(model.trainable_parameters())
    return next((f"the weight {name}" for name, value in weights if not _finite(value)), "")


def _first_of_pair(model: nn.Module, pair: EncodedPair, beta: float, nll_on: str) -> str:
    means = []
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not len(response):  # of an SFT row
            return ""
        ids = mx.array(np.concatenate([pair.prompt, response]))
        first, logits = _first_state(model, ids[None])
        if first:
            return f"{first} on the {name} response"
        logps = np.array(token_logps(logits[0, :-1], ids[1:]))
        prompt = len(pair.prompt) - 1  # targets that are the prompt's
        start = 0 if nll_on == "prompt+response" else prompt
        bad = np.flatnonzero(~np.isfinite(logps[start:]))
        if len(bad):
            number = int(bad[0]) + start + 2  # from 1; the first is not predicted
            return f"the log-prob of token {number} of the prompt and its {name} response"
        # In float64, as a sum of float32 log-probs may overflow where their mean does not.
        means.append(mx.array(float(logps[prompt:].mean(dtype=np.float64))))
    losses = orpo_loss(means[0], means[1], beta)
    return "" if _finite(losses.loss) else "the odds-ratio part of the loss"


def _first_state(
    model: nn.Module,
    ids: mx.array,  # (1, T)
) -> tuple[str, mx.array]:
    """The first of embeddings, blocks and logits that is not finite, and the logits (1, T, V)."""
    names = {id(module): name for name, module in model.named_modules()}
    bad: list[str] = []

    def around(layer: nn.Module, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if layer is model.layers[0] and not _all_finite(args[:1]):
            bad.append("the embeddings")
        result = call(layer, *args, **kwargs)
        if not _all_finite(result):
            bad.append(f"the output of {names[id(layer)]}")
        return result

    with block_calls(model, around):
        logits = model(ids)
    # A model may give tokens that it never writes -inf.
    if not bad and bool((mx.isnan(logits) | (logits == mx.inf)).any().item()):
        bad.append("the logits")
    return (bad[0] if bad else ""), logits


def _all_finite(states: Sequence[Any] | mx.array) -> bool:
    values = [states] if isinstance(states, mx.array) else [v for _, v in tree_flatten(states)]
    return all(map(_finite, values))
