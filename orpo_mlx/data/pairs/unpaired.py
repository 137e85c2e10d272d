"""Sets of single answers of which few make a pair: what they are, and what to do with them."""

from orpo_mlx.data.pairs.row_formats.kto import NO_BAD, NO_GOOD
from orpo_mlx.data.pairs.row_formats.ranked import TOO_FEW
from orpo_mlx.data.pairs.row_formats.scored import ALONE
from orpo_mlx.data.reading.report import ReadReport

WHAT_TO_DO = (
    "ORPO learns from two answers to one prompt: add the missing one to each prompt (another "
    "model's answer, or one of orpo-mlx generate), or train on single answers with a method made "
    "for them, such as KTO."
)


def describe_unpaired(report: ReadReport, pairs: int) -> str:
    """A sentence if more answers are without a second one than are in pairs; else ""."""
    alone = sum(report.rows_left_out[reason] for reason in (NO_BAD, NO_GOOD, ALONE, TOO_FEW))
    if alone <= 2 * pairs:
        return ""
    made = "1 pair comes" if pairs == 1 else f"{pairs:,} pairs come"
    return (
        f"a set of single answers rather than pairs: {made} out, {alone:,} answers have no "
        "counterpart to the same prompt"
    )
