"""What a base's template and limits do to rows: cut answers, answers that become the same."""

from collections.abc import Sequence
from typing import NamedTuple

from orpo_mlx.data.quality.findings import SEVERE, Finding, Hit, rows_finding
from orpo_mlx.data.quality.texts import Texts


class RenderedFacts(NamedTuple):
    """How a row looks to a model."""

    cut: tuple[str, ...] = ()  # answers that lose their end to the length limit
    same: bool = False  # whether both answers are the same text after rendering
    refused: str = ""  # why the template cannot say the row


def find_rendered(
    rows: Sequence[Texts], facts: Sequence[RenderedFacts], max_seq_length: int
) -> list[Finding]:
    """Findings about rows, of each of which `facts` holds one."""
    seen = list(zip(rows, facts, strict=True))
    cut = [Hit(row, f"{' and '.join(fact.cut)} cut") for row, fact in seen if fact.cut]
    same = [
        Hit(row) for row, fact in seen
        if fact.same and row.chosen_key != row.rejected_key
    ]  # fmt: skip
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
            "refused", SEVERE, refused, len(seen),
            what="the chat template cannot say the row",
            advice="Mend these rows, or give another template with --chat-template FILE.",
        ),
    ]  # fmt: skip
