"""What a base thinks of the pairs before training, and what its template and limits do to rows."""

from collections.abc import Sequence
from typing import NamedTuple

from orpo_mlx.data.quality.findings import NOTE, SEVERE, Finding, Hit, rows_finding
from orpo_mlx.data.quality.texts import Texts
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold


class BaseLogps(NamedTuple):
    """Mean log-probs per response token under the base."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """Above zero if the base finds the chosen answer likelier."""
        return self.chosen - self.rejected


def find_margins(
    rows: Sequence[Texts], logps: Sequence[BaseLogps | None], thresholds: Thresholds
) -> list[Finding]:
    """Findings about the rows that the base has judged; `logps` holds None for the others."""
    judged = [(row, base) for row, base in zip(rows, logps, strict=True) if base is not None]
    if not judged:
        return []
    margins = [(row, base.margin) for row, base in judged]
    n = len(judged)
    easy = [Hit(r, f"margin {m:+.2f}") for r, m in margins if m >= thresholds["easy"]]
    noise = sorted(
        (pair for pair in margins if pair[1] <= -thresholds["noise"]), key=lambda pair: pair[1]
    )
    right = sum(m > 0 for _, m in margins) / n
    return [
        *rows_finding(
            "noise",
            NOTE,
            [Hit(r, f"margin {m:+.2f}") for r, m in noise],
            n,
            what="the base ranks the pair wrong by a wide margin",
            advice="Read these first: chosen and rejected may be swapped.",
            threshold=describe_threshold("noise", thresholds),
        ),
        *rows_finding(
            "easy",
            NOTE,
            easy,
            n,
            what="the base already ranks the pair right with a wide margin",
            advice="There is little to learn from these: leave some out if training is slow.",
            threshold=describe_threshold("easy", thresholds),
        ),
        Finding(
            name="base",
            severity=NOTE,
            rows=(),
            total=n,
            what=f"the base ranks {right:.0%} of the pairs right; mean log-prob per token "
            f"{_mean([f.chosen for _, f in judged]):.2f} for chosen, "
            f"{_mean([f.rejected for _, f in judged]):.2f} for rejected",
            advice="Compare with a trained model: orpo-mlx evaluate.",
            figures={
                "right": right,
                "logps/chosen": _mean([f.chosen for _, f in judged]),
                "logps/rejected": _mean([f.rejected for _, f in judged]),
                "margin": _mean([m for _, m in margins]),
            },
        ),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class RenderedFacts(NamedTuple):
    """How a row looks to a model."""

    cut: tuple[str, ...] = ()  # answers that lose their end to the length limit
    same: bool = False  # whether both answers are the same text after rendering
    refused: str = ""  # why the template cannot render the row
    same_tokens: bool = False  # whether they are other texts, but the same tokens
    unwritten: str = ""  # which characters the tokenizer has no tokens for


def find_rendered(
    rows: Sequence[Texts], facts: Sequence[RenderedFacts], max_seq_length: int
) -> list[Finding]:
    """Findings about rows, of each of which `facts` holds one."""
    seen = list(zip(rows, facts, strict=True))
    cut = [Hit(row, f"{' and '.join(fact.cut)} cut") for row, fact in seen if fact.cut]
    same = [Hit(row) for row, fact in seen if fact.same and row.chosen_key != row.rejected_key]
    same_tokens = [Hit(row) for row, fact in seen if fact.same_tokens]
    unwritten = [Hit(row, fact.unwritten) for row, fact in seen if fact.unwritten]
    refused = [Hit(row, fact.refused) for row, fact in seen if fact.refused]
    return [
        *rows_finding(
            "cut", SEVERE, cut, len(seen),
            what=f"an answer is cut by the length limit ({max_seq_length:,} tokens)",
            advice="Raise --max-seq-length, or remove these rows: an answer without its end "
            "teaches the model not to stop.",
            threshold=f"--max-seq-length {max_seq_length}",
        ),
        *rows_finding(
            "same_rendered", SEVERE, same, len(seen),
            what="chosen and rejected are the same once the chat template has rendered them",
            advice="Remove these rows: the model sees nothing that tells the answers apart.",
        ),
        *rows_finding(
            "same_tokens", SEVERE, same_tokens, len(seen),
            what="chosen and rejected are different texts, but the same tokens",
            advice="Take a base whose tokenizer tells them apart, or remove these rows.",
        ),
        *rows_finding(
            "unwritten", SEVERE, unwritten, len(seen),
            what="the tokenizer has no tokens for some characters: it drops them, or writes its "
            "unknown token",
            advice="Take a base that knows this script, or remove these characters: the model "
            "cannot read or write them.",
        ),
        *rows_finding(
            "refused", SEVERE, refused, len(seen),
            what="the chat template cannot render the row",
            advice="Fix these rows, or give another template with --chat-template FILE.",
        ),
    ]  # fmt: skip
