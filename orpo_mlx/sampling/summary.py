"""The answers of a source in a few numbers."""

from statistics import fmean
from typing import NamedTuple

from orpo_mlx.sampling.sample import SourceResult


class Summary(NamedTuple):
    """Counts and means of a source's answers."""

    source: str
    answers: int
    cut: int
    mean_tokens: float
    mean_logp: float | None  # of those that came to their end; None if none did
    went_on: int  # cut answers that went on, to see how long they become
    ended: int  # of them, those that ended
    enough_tokens: int | None  # the --max-tokens with which these would not have been cut


def summary_of(result: SourceResult) -> Summary:
    """The numbers that a table and --json show."""
    rows = result.answers
    logps = [row.logp for row in rows if row.logp is not None]
    count, lengths = result.gone_on or (0, [])
    return Summary(
        result.source.name,
        len(rows),
        sum(row.cut for row in rows),
        fmean(row.tokens for row in rows),
        fmean(logps) if logps else None,
        count,
        len(lengths),
        max(lengths, default=None),
    )
