"""What the first steps of a run warn of. Imports no mlx."""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import NamedTuple

from orpo_mlx.training.metrics.log import mean

# Halves of the first steps differ by chance: so many standard errors and such a part are nothing.
NOISE = 3.0
FALL = 0.05
# Both responses rise as a base learns a format: only a large rise without a margin is a sign.
RISE, MARGIN = 0.15, 0.25
# To first order, the part of the loss that all updates together could change at most.
STANDSTILL = 1e-4
EQUAL = 1e-6  # of a log-prob: what rounding makes of equal terms; a gradient's norm below it is 0
PAPER = "arXiv 2403.07691"


def early_rise(losses: Sequence[float]) -> tuple[float, float] | None:
    """From where to where the loss of the first steps rose, if by more than chance.

    The later half is compared with the first step, which saw the untouched model, and with the
    earlier half. Each step sees other pairs, so two standard errors of noise are allowed, and 2 %.
    """
    half = len(losses) // 2
    if half < 4:
        return None
    late = losses[half:]
    for start in (losses[:1], losses[:half]):
        noise = stdev(late) * math.sqrt(1 / len(start) + 1 / len(late))
        if mean(late) > 1.02 * mean(start) + 2 * noise:
            return mean(start), mean(late)
    return None


class EarlySettings(NamedTuple):
    """What of a run its first steps are judged by."""

    learning_rate: float
    beta: float
    parameters: int  # trainable ones


def early_warning(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """What the first steps say of a run that learns nothing; "" for one that may."""
    return (
        _uniform(rows, settings)
        or _standstill(rows, settings)
        or _vanished(rows, settings)
        or _rising(rows, settings)
        or _together(rows, settings)
    )


def _uniform(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """Chosen and rejected have one log-prob in all of the later half."""
    late = [row for row in rows[len(rows) // 2 :] if "logps/chosen" in row]
    pairs = [(row["logps/chosen"], row["logps/rejected"]) for row in late]
    if len(rows) < 2 or not pairs or any(abs(c - r) > EQUAL * abs(c) for c, r in pairs):
        return ""
    return (
        f"Chosen and rejected responses have the same log-prob, {pairs[-1][0]:.3f} a token: the "
        "model finds every token equally likely and learns nothing any more. Start again with a "
        f"lower --learning-rate (now {settings.learning_rate:g})."
    )


def _standstill(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """The updates cannot have changed anything: no gradient, or hardly any rate."""
    # The rate is the root mean square of what a step moves the weights by: AdamW's about, Lion's
    # exactly, Adafactor's at most. So the loss falls by rate x norm x sqrt(weights) at most.
    moved = sum(row["learning_rate"] * row["grad_norm"] for row in rows)
    if moved * math.sqrt(settings.parameters) > STANDSTILL * abs(mean(r["loss"] for r in rows)):
        return ""
    norm, rate = (max(row[name] for row in rows) for name in ("grad_norm", "learning_rate"))
    start = f"Nothing has moved in the first {len(rows)} steps: "
    if norm < EQUAL:
        return (
            f"{start}the norm of the gradient is {norm:g}. What is trained does not reach the "
            "loss; look at --target-modules, --num-layers and --alpha."
        )
    return (
        f"{start}the learning rate was {rate:g} at most. Try a higher --learning-rate (now "
        f"{settings.learning_rate:g}) or a shorter --warmup."
    )


def _vanished(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """There was a gradient, and none in all of the later half: the model is broken."""
    norms = [row["grad_norm"] for row in rows]
    late = norms[len(norms) // 2 :]
    if len(rows) < 2 or max(late) >= EQUAL:
        return ""
    return (
        f"The norm of the gradient fell from {max(norms):.3g} to {late[-1]:g} over the first "
        f"{len(rows)} steps: the model learns nothing any more. Start again with a lower "
        f"--learning-rate (now {settings.learning_rate:g})."
    )


def _rising(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """The loss goes up: the usual sign of too high a rate."""
    if not (rise := early_rise([row["loss"] for row in rows])):
        return ""
    return (
        f"The loss rose from {rise[0]:.3f} to {rise[1]:.3f} over the first {len(rows)} steps. Try "
        f"a lower --learning-rate (now {settings.learning_rate:g})."
    )


def _together(rows: Sequence[Mapping[str, float]], settings: EarlySettings) -> str:
    """Chosen falls with rejected, or rises as much as it does; of the steps that took pairs."""
    rows = [row for row in rows if "logps/chosen" in row]
    half = len(rows) // 2
    if half < 4 or not settings.beta:
        return ""
    chosen = [row["logps/chosen"] for row in rows]
    rejected = [row["logps/rejected"] for row in rows]
    before, after = mean(chosen[:half]), mean(chosen[half:])
    moved, other = _shift(chosen), _shift(rejected)
    if moved < -FALL * abs(before) and other < 0:
        return (
            f"The log-prob of the chosen responses falls with that of the rejected ones, from "
            f"{before:.3f} to {after:.3f} over the first {len(rows)} steps. The odds-ratio loss "
            "falls with both where it weighs much: the paper shows it for a weight of 1 "
            f"({PAPER}, appendix E). Try a lower --beta (now {settings.beta:g}) or a lower "
            f"--learning-rate (now {settings.learning_rate:g})."
        )
    margin = mean(chosen[half:]) - mean(rejected[half:]) - before + mean(rejected[:half])
    if moved > RISE * abs(before) and other > 0 and margin < MARGIN * (after - before):
        return (
            "Chosen and rejected responses become likelier together: the log-prob of the chosen "
            f"ones rose from {before:.3f} to {after:.3f} over the first {len(rows)} steps, the "
            f"margin by {margin:.3f}. The likelihood of the chosen ones alone raises both "
            f"({PAPER}, section 3). If it stays so, the preference is not learned: see with "
            "orpo-mlx data check whether chosen and rejected are mixed up, or try a higher --beta "
            f"(now {settings.beta:g})."
        )
    return ""


def _shift(values: Sequence[float]) -> float:
    """How far the later half is from the earlier one; 0 within the noise."""
    half = len(values) // 2
    early, late = values[:half], values[half:]
    noise = math.hypot(stdev(early) / math.sqrt(half), stdev(late) / math.sqrt(len(late)))
    shift = mean(late) - mean(early)
    return shift if abs(shift) > NOISE * noise else 0.0
