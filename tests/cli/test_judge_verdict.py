"""`orpo-mlx judge --result` of a session for a verdict."""

import json
import shutil
from pathlib import Path

from orpo_mlx.judging.answers import append_answers
from tests.cli.conftest import Cli
from tests.judging.test_verdict_outcome import TEXT, answers_of, judged


def test_the_verdict_holds_where_the_models_are_gone(cli: Cli, tmp_path: Path) -> None:
    first, _ = judged(tmp_path)
    folder = tmp_path / "judged-verdict"
    measured = first.facts["forgotten"]["models"]["the adapter"]["change"]
    shutil.rmtree(tmp_path / "adapter")
    own = ("--forget-text", tmp_path / TEXT)
    kept = cli("judge", folder, "--result", "--json", *own)
    assert kept.status == 0, kept.err
    assert json.loads(kept.out)["forgotten"]["models"]["the adapter"]["change"] == measured
    (folder / "forgotten.json").unlink()
    gone = cli("judge", folder, "--result", *own)
    assert gone.status == 0, gone.err
    assert gone.out.startswith(first.sentences[0])
    assert "What was forgotten was not measured: " in gone.out
    assert "was not measured" in (folder / "verdict.html").read_text()


def test_a_text_that_cannot_be_used_is_refused_before_anybody_votes(
    cli: Cli, tmp_path: Path
) -> None:
    append_answers(tmp_path / "answers.jsonl", answers_of(tmp_path, 2))
    (tmp_path / TEXT).write_text("only one paragraph")
    answers, text = tmp_path / "answers.jsonl", tmp_path / TEXT
    result = cli("judge", answers, "--for", "verdict", "--forget-text", text)
    assert result.status == 1
    assert "must hold 2 paragraphs or more" in result.err
    assert not (tmp_path / "judged-verdict").exists()
