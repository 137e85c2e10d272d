"""A session's verdict with what was forgotten: computed, written, and as the terminal shows it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.events import Callback
from orpo_mlx.files import replacing, save_json
from orpo_mlx.judging.forgotten import ForgottenByModels, measure_forgotten
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.session import Session
from orpo_mlx.judging.verdict import (
    Part,
    Verdict,
    build_verdict,
    verdict_facts,
    verdict_sentences,
)
from orpo_mlx.judging.verdict_page import save_verdict_page

if TYPE_CHECKING:
    from rich.table import Table

JSON, PAGE = "verdict.json", "verdict.html"
PARTS_HEADING = "Where to look next, not a finding"


def verdict_outcome(session: Session, config: JudgeConfig, report: Callback) -> SessionOutcome:
    """The verdict of the votes so far; writes verdict.json and verdict.html into the folder.

    Raises OrpoError for a --forget-text that cannot be read.
    """
    verdict = build_verdict(session.answers, session.votes, session.facts)
    forgotten = measure_forgotten(
        session.folder, verdict.models, verdict.names, config.forget_text, report
    )
    facts = verdict_facts(verdict) | {"forgotten": forgotten.facts}
    files = [session.folder / PAGE, session.folder / JSON]
    save_verdict_page(verdict, forgotten, files[0])
    with replacing(files[1]) as new:
        save_json(new, facts)
    sentences = [*verdict_sentences(verdict), *forgotten.sentences]
    return SessionOutcome(sentences, facts, list(_tables(verdict, forgotten)), files)


def _tables(verdict: Verdict, forgotten: ForgottenByModels) -> Iterator[Any]:
    for title, parts in (("length of its answer", verdict.by_length), ("group", verdict.by_group)):
        if parts:
            yield _parts_table(verdict.names[0], title, parts)
    if forgotten.models:
        yield _forgotten_table(forgotten)


def _parts_table(name: str, title: str, parts: Sequence[Part]) -> "Table":
    from rich.table import Table

    table = Table(title=PARTS_HEADING, title_justify="left")
    table.add_column(title)
    table.add_column(f"{name} preferred")
    for part in parts:
        table.add_row(part.name, part.share.text)
    return table


def _forgotten_table(forgotten: ForgottenByModels) -> "Table":
    from rich.table import Table

    table = Table(title=f"Loss on {forgotten.text}, nats a token", title_justify="left")
    for column in ("", "base", "with adapter", "change", "95 %"):
        table.add_column(column, justify="left" if not column else "right")
    for name, one in forgotten.models.items():
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        table.add_row(name, f"{one.base:.3f}", f"{one.adapter:.3f}", f"{one.change:+.3f}", interval)
    return table
