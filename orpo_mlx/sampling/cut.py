"""Answers that were cut at the limit: how long they would have become."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from orpo_mlx.events import Callback, Progress
from orpo_mlx.judging.answers import AnswerSource, SampledAnswer
from orpo_mlx.sampling.batches import Draw, Drawing, Drawn, draw_in_batches

MOST = 8  # answers of a source that go on
MOST_ALONE = 2  # the same where they go one by one
STAGE = "Letting cut answers go on"
TIMES = 2  # the limit, up to which they go on: as long as the answers themselves took
DrawAll = Callable[[Drawing, Sequence[Draw]], Iterator[tuple[int, Drawn]]]


class GoneOn(NamedTuple):
    """Cut answers that went on: how many, and the lengths of those that ended, in tokens."""

    answers: int
    lengths: list[int]  # with the end token, as --max-tokens counts


def let_go_on(how: Drawing, draw: DrawAll, cut: Sequence[Draw], report: Callback) -> GoneOn:
    """Let some of the cut answers go on, to know which limit would have been enough."""
    cut = cut[: MOST if draw is draw_in_batches else MOST_ALONE]
    longer, lengths = replace(how, max_tokens=TIMES * how.max_tokens), list[int]()
    report(Progress(STAGE, 0, len(cut)))
    for done, (index, drawn) in enumerate(draw(longer, cut), 1):
        report(Progress(STAGE, done, len(cut)))
        if drawn.ended:
            lengths.append(cut[index].start + len(drawn.ids))
    return GoneOn(len(cut), sorted(lengths))


def cut_sentence(
    source: AnswerSource, rows: Sequence[SampledAnswer], gone_on: GoneOn | None
) -> str:
    """How many answers were cut, and the limit that would have been enough; "" if none was."""
    limit, cut = source.max_tokens, [row for row in rows if row.cut]
    at_limit = sum(row.tokens >= limit for row in cut)  # the end token counts, too
    parts = []
    if at_limit:
        verb = "was" if at_limit == 1 else "were"
        parts.append(f"{at_limit} of {len(rows)} answers {verb} cut at --max-tokens {limit}")
    if at_limit and gone_on and gone_on.answers:
        parts.append(_outcome(gone_on, limit))
    if early := len(cut) - at_limit:
        parts.append(f"{early} of {len(rows)} ended inside their thought")
    return f"{source.name}: {'; '.join(parts)}." if parts else ""


def _outcome(gone_on: GoneOn, limit: int) -> str:
    if not gone_on.lengths:
        return f"none of {gone_on.answers} that went on ends within {TIMES * limit}"
    ends = "ends" if len(gone_on.lengths) == 1 else "end"
    return (
        f"of {gone_on.answers} that went on, {len(gone_on.lengths)} {ends} within "
        f"--max-tokens {gone_on.lengths[-1]}"
    )
