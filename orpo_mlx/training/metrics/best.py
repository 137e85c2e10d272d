"""Which validation of a run was the best, from the rows of metrics.jsonl. Imports no mlx."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Of config/train.py: BestMetric, those that are better when lower.
LOWER_IS_BETTER = {"eval_loss", "eval_nll_loss"}


class Best(NamedTuple):
    """The best validation of what was trained; the one before the first step is not among them."""

    step: int
    value: float
    since: int  # validations after it
    last: float  # the metric at the last validation
    start: float | None  # the metric before the first step, where it was measured

    def helped(self, metric: str) -> bool:
        """Whether it is better than the validation before the first step, or that is not known."""
        return self.start is None or _score(metric, self.value) > _score(metric, self.start)


def best_of(rows: Sequence[Mapping[str, float]], metric: str) -> Best | None:
    """The best validation by `metric`, the first of equal ones; NaN and infinity are never best.

    None if nothing that was trained has been validated.
    """
    measured = [(int(row["step"]), row[metric]) for row in rows if metric in row]
    trained = [(step, value) for step, value in measured if step > 0]
    finite = [(step, value) for step, value in trained if math.isfinite(value)]
    if not finite:
        return None
    step, value = max(finite, key=lambda point: _score(metric, point[1]))
    since = sum(later > step for later, _ in trained)
    start = next((v for s, v in measured if s == 0 and math.isfinite(v)), None)
    return Best(step, value, since, trained[-1][1], start)


def _score(metric: str, value: float) -> float:
    """Higher is better."""
    return -value if metric in LOWER_IS_BETTER else value
