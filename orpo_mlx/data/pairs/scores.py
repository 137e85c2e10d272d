"""Which two of several scored answers make a pair, for the formats that have scores."""

from collections.abc import Sequence
from itertools import combinations

from orpo_mlx.data.pairs.fields import MARGIN, TIED
from orpo_mlx.data.pairs.row_format import HIGHER, LOWER, MIN_MARGIN, RowFormat
from orpo_mlx.data.reading.report import ReadReport

SCORE_OPTIONS = (MIN_MARGIN, HIGHER, LOWER)


def best_pairs(
    scores: Sequence[float], higher_is_better: bool, min_margin: float | None, report: ReadReport
) -> list[tuple[int, int]]:
    """Indices of the better and the worse answer of each pair.

    The best and the worst, or, with `min_margin`, every two that are at least so far apart.
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=higher_is_better)
    if min_margin is None:
        if scores[order[0]] == scores[order[-1]]:
            report.leave_out(TIED)
            return []
        worst = next(i for i in order if scores[i] == scores[order[-1]])
        return [(order[0], worst)]
    pairs = []
    for better, worse in combinations(order, 2):
        apart = abs(scores[better] - scores[worse])
        if apart and apart >= min_margin:
            pairs.append((better, worse))
        else:
            report.leave_out(MARGIN if apart else TIED)
    return pairs


def describe_scores(row_format: RowFormat, answers: str, score: str) -> str:
    """How pairs are made of scored answers, in words."""
    margin = row_format.reading.min_margin
    how = "best against worst" if margin is None else f"every two at least {margin:g} apart"
    better = "greater" if row_format.higher_is_better else "smaller"
    return f'{answers}, {how} by "{score}" ({better} is better)'
