"""Pairs that say the opposite of each other about one prompt."""

from collections import defaultdict
from collections.abc import Sequence

from orpo_mlx.data.quality.findings import SEVERE, Finding, Hit, rows_finding
from orpo_mlx.data.quality.texts import Texts


def find_contradictions(rows: Sequence[Texts]) -> list[Finding]:
    """Pairs that are swapped elsewhere, and texts that are chosen here and rejected there."""
    by_pair: dict[tuple[str, str, str], list[Texts]] = defaultdict(list)
    rejecting: dict[tuple[str, str], list[Texts]] = defaultdict(list)
    for row in rows:
        if row.chosen_key != row.rejected_key:
            by_pair[row.prompt_key, row.chosen_key, row.rejected_key].append(row)
            rejecting[row.prompt_key, row.rejected_key].append(row)
    swapped = [
        Hit(row, f"swapped in {others[0].place}")
        for row in rows
        if (others := by_pair.get((row.prompt_key, row.rejected_key, row.chosen_key)))
        and row.chosen_key != row.rejected_key
    ]
    contrary = {hit.row.place for hit in swapped}
    both_ways: dict[str, Hit] = {}
    for row in rows:
        if row.place in contrary or row.chosen_key == row.rejected_key:
            continue
        for other in rejecting.get((row.prompt_key, row.chosen_key), ()):
            if other.place not in contrary:
                both_ways.setdefault(row.place, Hit(row, f"chosen is rejected in {other.place}"))
                both_ways.setdefault(other.place, Hit(other, f"rejected is chosen in {row.place}"))
    return [
        *rows_finding(
            "swapped", SEVERE, swapped, len(rows),
            what="the same pair stands elsewhere with chosen and rejected swapped",
            advice="Decide which answer is better, and remove the other row.",
        ),
        *rows_finding(
            "both_ways", SEVERE, list(both_ways.values()), len(rows),
            what="a text is chosen here and rejected there for the same prompt",
            advice="Remove one of the rows. Of answers that are ranked, the middle ones are both: "
            "keep the best against the worst, without --min-margin.",
        ),
    ]  # fmt: skip
