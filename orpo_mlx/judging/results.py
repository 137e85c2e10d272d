"""What the votes of a session can show, and what they come to: files and sentences."""

import shlex
from collections.abc import Mapping
from typing import Any

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.events import Callback
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.pairs_result import save_judged_pairs
from orpo_mlx.judging.power import power_sentence
from orpo_mlx.judging.session import Session
from orpo_mlx.judging.to_pairs import COUNTS, FEW_PAIRS


def power_notes(session: Session) -> list[str]:
    """What a verdict can show, before it is begun: equal answers are ties already."""
    facts = session.facts
    open_prompts = facts.prompts - len(facts.equal)
    return [power_sentence(open_prompts)] if facts.purpose == "verdict" else []


def compute_outcome(
    session: Session, config: JudgeConfig, report: Callback, *, is_stage: bool = False
) -> SessionOutcome:
    """Write what the votes so far come to into the session's folder.

    In a stage of a loop, which trains next, no command is advised. Raises OrpoError where there is
    no vote, or a file cannot be written.
    """
    if session.purpose == "verdict":
        # It loads mlx, for which the page does not wait.
        from orpo_mlx.judging.verdict_outcome import verdict_outcome

        return verdict_outcome(session, config, report)
    return _pairs_outcome(session, config, report, is_stage)


def _pairs_outcome(
    session: Session, config: JudgeConfig, report: Callback, is_stage: bool
) -> SessionOutcome:
    result = save_judged_pairs(session.folder, config.edits, report)
    sentences = list(result.sentences)
    if result.file and not is_stage:
        model = next(iter(session.answers.values())).source.model
        command = ["orpo-mlx", "train", "--model", model, "--data", str(result.file), *FEW_PAIRS]
        command += ["--thinking", "off"] if result.edited_next_to_thoughts else []
        sentences.append(f"Train on them: {shlex.join(command)} --output adapters/NAME")
    files = [result.file] if result.file else []
    return SessionOutcome(sentences, result.facts, [_counts_table(result.counts)], files)


def _counts_table(counts: Mapping[str, int]) -> Any:
    from rich.table import Table

    table = Table(title="What became of the votes", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, label in COUNTS.items():
        if counts[name] or not label.startswith(" "):
            table.add_row(label, f"{counts[name]:,}")
    return table
