"""A session's verdict with what was forgotten: computed, written, and as the terminal shows it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.events import Callback
from orpo_mlx.files import replacing, save_json
from orpo_mlx.judging.forgotten import (
    ForgottenByModels,
    load_general_text,
    measure_forgotten,
)
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.session import Session
from orpo_mlx.judging.verdict import (
    VERDICT,
    VERDICT_PAGE,
    PartShare,
    Verdict,
    build_verdict,
    parts_of,
    verdict_facts,
    verdict_sentences,
)
from orpo_mlx.judging.verdict_page import save_verdict_page
from orpo_mlx.review.pairs.visible import iter_pieces

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NOT_YET = "this was written before it was done"
PARTS_HEADING = "Where to look next, not a finding"


def verdict_outcome(session: Session, config: JudgeConfig, report: Callback) -> SessionOutcome:
    """The verdict of the votes so far; writes verdict.json and verdict.html into the folder.

    Both are there before it is measured what was forgotten, which can take a while. Raises
    OrpoError for a --forget-text that cannot be used.
    """
    text = load_general_text(config.forget_text)
    verdict = build_verdict(session.answers, session.votes, session.facts)
    _save(session.folder, verdict, ForgottenByModels(text.name, {}, NOT_YET))
    forgotten = measure_forgotten(session.folder, verdict.models, verdict.names, text, report)
    facts = _save(session.folder, verdict, forgotten)
    files = [session.folder / VERDICT_PAGE, session.folder / VERDICT]
    return SessionOutcome(facts["sentences"], facts, list(_tables(verdict, forgotten)), files)


def _save(folder: Path, verdict: Verdict, forgotten: ForgottenByModels) -> dict[str, Any]:
    """Write both files; the facts that the one holds."""
    sentences = [*verdict_sentences(verdict), *forgotten.sentences]
    facts = verdict_facts(verdict) | {"forgotten": forgotten.facts, "sentences": sentences}
    save_verdict_page(verdict, forgotten, folder / VERDICT_PAGE)
    with replacing(folder / VERDICT) as new:
        save_json(new, facts)
    return facts


def _tables(verdict: Verdict, forgotten: ForgottenByModels) -> Iterator[Any]:
    for by, parts in parts_of(verdict):
        yield _parts_table(verdict.names[0], by, parts)
    if forgotten.models:
        yield _forgotten_table(forgotten)


def _parts_table(name: str, by: str, parts: Sequence[PartShare]) -> "Table":
    from rich.table import Table

    table = Table(title=PARTS_HEADING, title_justify="left")
    table.add_column(_visible(by))
    table.add_column(_visible(f"{name} preferred in"))
    for part in parts:
        table.add_row(_visible(part.name), part.share.text)
    return table


def _forgotten_table(forgotten: ForgottenByModels) -> "Table":
    from rich.table import Table

    title = _visible(f"Loss on {forgotten.text}, nats a token")
    table = Table(title=title, title_justify="left")
    for column in ("", "base", "with adapter", "change", "95 %"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in forgotten.models.items():
        numbers = f"{one.base:.3f}", f"{one.adapter:.3f}", f"{one.change:+.3f}"
        table.add_row(_visible(name), *numbers, f"{one.low:+.3f} to {one.high:+.3f}")
    return table


def _visible(text: str) -> "Text":
    """People's and models' words as they are: no markup, and nothing that moves a cursor."""
    from rich.text import Text

    return Text("".join(piece.text for piece in iter_pieces(text)))
