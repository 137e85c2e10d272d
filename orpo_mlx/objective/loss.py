"""The ORPO loss from mean log-probs per response token. Knows nothing of models or tokens.

Source: Hong, Lee, Thorne 2024, arXiv 2403.07691, eq. 4 to 7.
"""

from typing import NamedTuple

import mlx.core as mx

LN_2 = 0.6931471805599453
# The float32 next to 0 whose exp is not 1: a mean log-prob of exactly 0 has infinite odds.
LARGEST_LOGP = -(2.0**-24)


class OrpoLoss(NamedTuple):
    """Per-pair arrays, each of shape (B,) in float32."""

    loss: mx.array
    nll_loss: mx.array
    log_odds: mx.array  # log odds ratio of chosen over rejected
    odds_ratio_loss: mx.array  # -log sigmoid(log_odds), not yet times beta
    saturated: mx.array  # bool: a mean log-prob above LARGEST_LOGP was bounded


def log1mexp(v: mx.array) -> mx.array:
    """log(1 - exp(v)) for v < 0, without cancellation on either side of -ln 2.

    Source: Maechler 2012, "Accurately Computing log(1 - exp(-|a|))", eq. 7.
    """
    near_zero = v > -LN_2
    # Each branch gets arguments on its own side only, else 0 * inf makes gradients NaN.
    small = mx.log(-mx.expm1(mx.where(near_zero, v, -LN_2)))
    large = mx.log1p(-mx.exp(mx.where(near_zero, -LN_2, v)))
    return mx.where(near_zero, small, large)


def orpo_loss(
    chosen_logps: mx.array,  # (B,) mean log-prob per token of the chosen response
    rejected_logps: mx.array,  # (B,)
    beta: float | mx.array,
    nll: mx.array | None = None,  # (B,) the likelihood part, if not -chosen_logps
    paired: mx.array | None = None,  # (B,) bool, False where there is no rejected response
) -> OrpoLoss:
    """loss = nll + beta * -log sigmoid(log odds ratio), per pair; eq. 6 and 7, beta its lambda.

    Without a rejected response it is nll alone.
    """
    chosen, rejected = chosen_logps.astype(mx.float32), rejected_logps.astype(mx.float32)
    nll = -chosen if nll is None else nll.astype(mx.float32)
    saturated = (chosen > LARGEST_LOGP) | (rejected > LARGEST_LOGP)
    bounded_chosen = mx.minimum(chosen, LARGEST_LOGP)
    bounded_rejected = mx.minimum(rejected, LARGEST_LOGP)
    log_odds = (bounded_chosen - bounded_rejected) - (
        log1mexp(bounded_chosen) - log1mexp(bounded_rejected)
    )
    odds_ratio_loss = mx.logaddexp(-log_odds, 0.0)
    odds_part = beta * odds_ratio_loss
    if paired is not None:
        odds_part = mx.where(paired, odds_part, 0.0)
    return OrpoLoss(nll + odds_part, nll, log_odds, odds_ratio_loss, saturated)
