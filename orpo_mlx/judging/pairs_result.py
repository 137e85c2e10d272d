"""What a session for pairs comes to: pairs.jsonl, checked at once, as sentences and as facts."""

from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.data.quality.check import Report
from orpo_mlx.data.quality.findings import NOTE, SEVERITIES, Finding, worst_first
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.judging.to_pairs import PAIRS, Edits, write_pairs
from orpo_mlx.review.pairs.check import check_data, report_json

WITHOUT_THOUGHT = (
    "The edited answers have no thought, others have: train with --thinking off, or leave the edits"
    " out with --edits drop."
)


class PairsResult(NamedTuple):
    """The pairs of a folder. `check` is None where no pair was made, or none could be checked."""

    folder: Path
    counts: dict[str, int]  # by the names of COUNTS
    edited_next_to_thoughts: bool
    check: Report | None

    @property
    def file(self) -> Path | None:
        """The pairs; None if there are none."""
        return self.folder / PAIRS if self.counts["pairs"] else None

    @property
    def sentences(self) -> list[str]:
        """The result for everybody."""
        counts, votes = self.counts, _number(self.counts["votes"], "vote")
        if self.file:
            sentences = [f"{_number(counts['pairs'], 'pair')} from {votes}: {self.file}."]
        else:
            sentences = [f"No pair came of {votes}, and none was written."]
        ties, bad, skipped = (counts[name] for name in ("ties", "both_bad", "skipped"))
        if ties or bad or skipped:
            sentences.append(f"{_number(ties, 'tie')}, {bad} both bad, {skipped} skipped.")
        if counts["repeats"]:
            sentences.append(
                f"{counts['contradicted']} of {_number(counts['repeats'], 'repeat')} preferred the "
                "other answer: such a vote is a tie."
            )
        if counts["edits"]:
            left_out = counts["edits_left_out"]
            used = f"{_number(counts['edits'] - left_out, 'edit')} used, {left_out} left out."
            sentences.append(used)
        if self.edited_next_to_thoughts:
            sentences.append(WITHOUT_THOUGHT)
        return sentences + self._check_sentences

    @property
    def facts(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "folder": str(self.folder),
            "file": str(self.file) if self.file else None,
            "counts": self.counts,
            "edited_next_to_thoughts": self.edited_next_to_thoughts,
            "check": report_json(self.check) if self.check else None,
        }

    @property
    def _check_sentences(self) -> list[str]:
        if not self.check:
            return []
        findings = self.check.findings
        severe, warnings, notes = (
            sum(finding.severity == name for finding in findings) for name in SEVERITIES
        )
        numbers = f"{severe} severe, {_number(warnings, 'warning')}, {_number(notes, 'note')}"
        worse = [f"{f.severity}: {f.what}." for f in findings if f.severity != NOTE]
        return [f"Check of the pairs: {numbers} (orpo-mlx data check {self.file}).", *worse]


def save_judged_pairs(folder: Path, edits: Edits, report: Callback) -> PairsResult:
    """Write the pairs of a folder's votes and check them as `data check` does.

    Without the libraries of the check a notice names what to install. Raises OrpoError for votes
    that cannot be used.
    """
    result = write_pairs(folder, edits)
    checked = _check(folder / PAIRS, report) if result.pairs else None
    if checked and result.counts["pairs_of_edits"]:
        checked = checked._replace(findings=worst_first([*map(_as_ranking, checked.findings)]))
    return PairsResult(folder, result.counts, result.edited_next_to_thoughts, checked)


def _check(file: Path, report: Callback) -> Report | None:
    try:
        return check_data(DataCheckConfig(data=[str(file)]), report)
    except OrpoError as error:
        report(Notice(f"{file} is written, but not checked: {error}", warning=True))
        return None


def _as_ranking(finding: Finding) -> Finding:
    """What `data check` calls a contradiction is wanted where edits are: edit, answer, other."""
    if finding.name != "both_ways":
        return finding
    return finding._replace(
        severity=NOTE,
        what="an answer is chosen over the other one and rejected for its edit: a ranking",
        advice="Nothing, or leave the edits out with --edits drop.",
    )


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
