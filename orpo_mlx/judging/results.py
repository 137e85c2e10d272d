"""What a session is about before it begins, and what its votes come to: files and sentences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.power import power_sentence
from orpo_mlx.judging.session import Session
from orpo_mlx.judging.to_pairs import COUNTS, PAIRS, write_pairs
from orpo_mlx.review.pairs.check import check_data, report_json


def introduction(session: Session) -> list[str]:
    """What will be judged, what is left out, and what a verdict on so many prompts can show."""
    facts = session.facts
    repeats = sum(item.repeat_of is not None for item in facts.items)
    again = f", {repeats} of them shown again with their sides swapped" if repeats else ""
    sentences = [f"{_count(len(facts.items), 'item')} of {_count(facts.prompts, 'prompt')}{again}."]
    if facts.equal:
        sentences.append(f"{_count(len(facts.equal), 'tie')} by equal answers, not shown.")
    sentences += [f"Left out: {count} x {reason}." for reason, count in facts.left_out.items()]
    if session.purpose == "verdict":
        sentences.append(power_sentence(facts.prompts))
    return sentences


def compute_outcome(session: Session, config: JudgeConfig, report: Callback) -> SessionOutcome:
    """Write what the votes so far come to into the session's folder.

    Raises OrpoError where there is no vote, or a file cannot be written.
    """
    if session.purpose == "verdict":
        # It loads mlx, for which the page does not wait.
        from orpo_mlx.judging.verdict_outcome import verdict_outcome

        return verdict_outcome(session, config, report)
    return _pairs_outcome(session, config, report)


def _pairs_outcome(session: Session, config: JudgeConfig, report: Callback) -> SessionOutcome:
    result = write_pairs(session.folder, config.edits)
    file = session.folder / PAIRS
    facts: dict[str, Any] = {"folder": session.folder, "counts": result.counts, "pairs": None}
    sentences = [_pairs_sentence(result.counts)]
    if not result.pairs:
        return SessionOutcome(sentences, facts, [_counts_table(result.counts)])
    if result.edited_next_to_thoughts:
        sentences.append(
            "Your versions have no thought and the other answers do: train with --thinking off, or "
            "leave your versions out (orpo-mlx judge --result --edits drop)."
        )
    check, findings = _check(file, report)
    sentences += [*check, f"Train on them: {_train_command(session, file)}"]
    facts |= {"pairs": file, "check": findings}
    return SessionOutcome(sentences, facts, [_counts_table(result.counts)], [file])


def _pairs_sentence(counts: Mapping[str, int]) -> str:
    votes = f"{_count(counts['votes'], 'vote')} and {_count(counts['edits'], 'edit')}"
    return f"{votes} make {_count(counts['pairs'], 'pair')}."


def _check(file: Path, report: Callback) -> tuple[list[str], dict[str, Any] | None]:
    """What `data check` says of the pairs, in a sentence and as a whole."""
    command = f"orpo-mlx data check {file}"
    try:
        checked = check_data(DataCheckConfig(data=[str(file)]), report)
    except OrpoError as error:
        return [f"The pairs were not checked: {error}"], None
    names = [finding.name for finding in checked.findings if finding.severity != "note"]
    seen = (
        f"found {', '.join(names)}: {command}" if names else f"found nothing to act on ({command})"
    )
    return [f"A check of them {seen}."], report_json(checked)


def _train_command(session: Session, file: Path) -> str:
    model = next(iter(session.answers.values())).source.model
    return f"orpo-mlx train --model {model} --data {file} --output adapters/NAME"


def _counts_table(counts: Mapping[str, int]) -> Any:
    from rich.table import Table

    table = Table(title="What became of the votes", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, label in COUNTS.items():
        if counts[name] or not label.startswith(" "):
            table.add_row(label, f"{counts[name]:,}")
    return table


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
