"""How far apart two answers are, and answers that stop short, leave code open or refuse."""

from collections.abc import Callable, Sequence

from orpo_mlx.data.quality.answers import has_open_fence, is_cut_short, refuses
from orpo_mlx.data.quality.findings import NOTE, Finding, Hit, rows_finding
from orpo_mlx.data.quality.texts import Texts, units
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold
from orpo_mlx.extras import import_extra

LEAST_UNITS = 12  # shorter answers are compared letter by letter


def find_unclear(
    rows: Sequence[Texts], similarities: Sequence[float], thresholds: Thresholds
) -> list[Finding]:
    """Pairs with little difference, and answers that are incomplete or refuse."""
    alike = [
        Hit(row, f"edit similarity {similarity:.2f}")
        for row, similarity in zip(rows, similarities, strict=True)
        if similarity >= thresholds["alike"] and row.chosen_key != row.rejected_key
    ]
    return [
        *rows_finding(
            "alike", NOTE, alike, len(rows),
            what="chosen and rejected are nearly the same",
            advice="Check whether the difference is what you want to teach: most tokens of such a "
            "pair are pushed up and down at once.",
            threshold=describe_threshold("alike", thresholds),
        ),
        *_of_answers(
            rows, "truncated", is_cut_short, "an answer ends in the middle of a sentence",
            "Raise the limit at which these answers were generated, or cut them at their last "
            "complete sentence.",
        ),
        *_of_answers(
            rows, "open_fence", has_open_fence, "an answer leaves a block of code open",
            "Close the block, or remove the row if the code is cut.",
        ),
        *rows_finding(
            "refusal", NOTE, [Hit(r, "chosen refuses") for r in rows if refuses(r.chosen)],
            len(rows),
            what="the chosen answer refuses",
            advice="Keep those that should be refused; the others teach the model to decline.",
        ),
    ]  # fmt: skip


def _of_answers(
    rows: Sequence[Texts], name: str, is_so: Callable[[str], bool], what: str, advice: str
) -> list[Finding]:
    hits, counts = [], {"chosen": 0, "rejected": 0}
    for row in rows:
        sides = [side for side, text in row.answers if is_so(text)]
        if sides:
            ends = " / ".join(f"{side} ends: {_end(row, side)}" for side in sides)
            hits.append(Hit(row, ends))
        for side in sides:
            counts[side] += 1
    return rows_finding(name, NOTE, hits, len(rows), what=what, advice=advice, figures=counts)


def _end(row: Texts, side: str) -> str:
    text = " ".join((row.chosen if side == "chosen" else row.rejected).split())
    return f"... {text[-60:]}" if len(text) > 60 else text


def edit_similarity(row: Texts) -> float:
    """Share of two answers that is common to both in order: 1 if they are the same, else less.

    Counted in words, letter by letter in short answers: 2 * longest common subsequence / lengths.
    """
    a, b = units(row.chosen_key), units(row.rejected_key)
    if min(len(a), len(b)) < LEAST_UNITS:
        return sequence_similarity(row.chosen_key, row.rejected_key)
    return sequence_similarity(a, b)


def sequence_similarity(a: Sequence[str], b: Sequence[str]) -> float:
    """2 * longest common subsequence / both lengths; two empty ones are the same."""
    if not a and not b:
        return 1.0
    common = import_extra("rapidfuzz.distance", "check").LCSseq.similarity(a, b)
    return 2 * common / (len(a) + len(b))
