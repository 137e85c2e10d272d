"""A session's verdict as files, tables and sentences."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.events import Event, Progress
from orpo_mlx.judging.answers import SampledAnswer, adapter_sum
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.verdict_outcome import verdict_outcome
from tests.judging.sessions import answer, opened, source
from tests.review.forgetting.adapters import PARAGRAPHS, save_two

TEXT = "own.txt"


def answers_of(folder: Path, prompts: int) -> list[SampledAnswer]:
    base, adapter = save_two(folder, 1.0)
    sources = [
        source("base", model=str(base)),
        source("mine", model=str(base), adapter=str(adapter), adapter_sum=adapter_sum(adapter)),
    ]
    return [
        answer(f"{who.name} {n}", f"Prompt {n}?", name=who.name, source=who,
               group=("odd", "[red]\x1b[2J")[n % 2])
        for who in sources
        for n in range(prompts)
    ]  # fmt: skip


def judged(folder: Path, prompts: int = 32) -> tuple[SessionOutcome, list[Event]]:
    """A judge who always prefers the adapter; the outcome, and what is reported."""
    (folder / TEXT).write_text("\n\n".join(PARAGRAPHS))
    events = list[Event]()
    config = JudgeConfig(answers=[folder / "answers.jsonl"], forget_text=folder / TEXT)
    with opened(folder, answers_of(folder, prompts), purpose="verdict") as session:
        while item := session.next_item("you"):
            better = "first" if item.first.source.adapter else "second"
            session.vote("you", f"vote-{item.id}", item.id, better)
        session.end()
        return verdict_outcome(session, config, events.append), events


def test_the_files_hold_what_is_returned(tmp_path: Path) -> None:
    outcome, events = judged(tmp_path)
    folder = tmp_path / "judged-verdict"
    assert outcome.files == [folder / "verdict.html", folder / "verdict.json"]
    assert json.loads((folder / "verdict.json").read_text()) == outcome.facts
    assert outcome.facts["sentences"] == outcome.sentences
    assert outcome.sentences[0] == (
        "You preferred the adapter in 32 of 32 decided prompts (100 %, 89 to 100); 0 ties and 0 "
        "both-bad apart."
    )
    assert outcome.sentences[1] == "You contradicted yourself in 0 of 8 repeats."
    assert outcome.sentences[-1].startswith("Warning: On ")
    assert outcome.facts["by_group"] == [["[red]\x1b[2J", 16, 16], ["odd", 16, 16]]
    assert outcome.facts["forgotten"]["models"]["the adapter"]["low"] > 0.05
    assert [e.done for e in events if isinstance(e, Progress)] == list(range(1, 9))


def test_tables_for_the_terminal_have_the_parts_and_the_losses(tmp_path: Path) -> None:
    outcome, _ = judged(tmp_path)
    console = Console(width=100, record=True, file=io.StringIO())
    for table in outcome.tables:
        console.print(table)
    text = console.export_text()
    assert "Where to look next, not a finding" in text
    assert "16 of 16 decided prompts (100 %, 81 to 100)" in text
    assert "[red]\u241b[2J" in text  # not obeyed: neither markup nor an escape
    change = outcome.facts["forgotten"]["models"]["the adapter"]["change"]
    assert f"{change:+.3f}" in text


def test_the_verdict_is_on_the_disk_before_what_was_forgotten_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orpo_mlx.judging.verdict_outcome.measure_forgotten", killed)
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path)
    facts = json.loads((tmp_path / "judged-verdict" / "verdict.json").read_text())
    assert facts["claimed"]
    assert facts["forgotten"]["models"] == {}
