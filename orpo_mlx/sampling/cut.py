"""Answers that were cut at the limit: how long they would have become."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from orpo_mlx.events import Callback, Progress
from orpo_mlx.sampling.batches import Draw, Drawing, Drawn, draw_in_batches

MOST = 8  # answers of a source that go on
MOST_ALONE = 2  # the same where they go one by one
TIMES = 4  # the limit, up to which they go on
DrawAll = Callable[[Drawing, Sequence[Draw]], Iterator[tuple[int, Drawn]]]


class GoneOn(NamedTuple):
    """Cut answers that went on: how many, and the lengths of those that ended, in tokens."""

    answers: int
    lengths: list[int]  # with the end token, as --max-tokens counts


def let_go_on(how: Drawing, draw: DrawAll, cut: Sequence[Draw], report: Callback) -> GoneOn:
    """Let some of the cut answers go on, to know which limit would have been enough."""
    cut = cut[: MOST if draw is draw_in_batches else MOST_ALONE]
    longer, lengths = replace(how, max_tokens=TIMES * how.max_tokens), list[int]()
    for done, (index, drawn) in enumerate(draw(longer, cut), 1):
        report(Progress("Letting cut answers go on", done, len(cut)))
        if drawn.ended:
            lengths.append(cut[index].start + len(drawn.ids))
    return GoneOn(len(cut), sorted(lengths))


def cut_sentence(name: str, cut: int, answers: int, max_tokens: int, gone_on: GoneOn | None) -> str:
    """How many answers were cut, and the limit that would have been enough; "" if none was."""
    if not cut:
        return ""
    verb = "was" if cut == 1 else "were"
    sentence = f"{name}: {cut} of {answers} answers {verb} cut at --max-tokens {max_tokens}"
    if gone_on is None or not gone_on.answers:
        return f"{sentence}."
    if not gone_on.lengths:
        return (
            f"{sentence}; none of {gone_on.answers} that went on ends within {TIMES * max_tokens}: "
            "a higher limit would not help."
        )
    ends = "ends" if len(gone_on.lengths) == 1 else "end"
    return (
        f"{sentence}; of {gone_on.answers} that went on, {len(gone_on.lengths)} {ends} within "
        f"--max-tokens {gone_on.lengths[-1]}."
    )
