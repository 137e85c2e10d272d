"""What a session for pairs comes to, as its page, its command and --json show it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.events import Notice
from orpo_mlx.install_advice import pip_install
from orpo_mlx.judging.answers import append_answers
from orpo_mlx.judging.pairs_result import WITHOUT_THOUGHT, save_judged_pairs
from orpo_mlx.judging.results import compute_outcome
from orpo_mlx.judging.to_pairs import PAIRS
from orpo_mlx.judging.votes import EditedAnswer, Vote, append_votes
from orpo_mlx.review.pairs.check import check_data, report_json
from tests.judging.sessions import answer, opened, vote

A, B = (answer(text, number=n, thought="Hm.") for n, text in enumerate(("One.", "Two.")))


def folder_of(folder: Path, *votes: Vote) -> Path:
    append_answers(folder / "answers.jsonl", [A, B])
    append_votes(folder / "votes.jsonl", votes)
    return folder


def test_pairs_are_checked_at_once_as_data_check_does(tmp_path: Path) -> None:
    edit = EditedAnswer(of=B.id, text="Two.<|im_end|>")
    folder_of(
        tmp_path,
        vote("i", A.id, B.id, "first", edit=edit),
        vote("j", B.id, A.id, "first", repeat_of="i"),
        vote("k", A.id, B.id, "skip"),
        vote("i", A.id, B.id, "first", judge="ann"),
    )
    result = save_judged_pairs(tmp_path, "keep", lambda event: None)
    file = tmp_path / PAIRS
    alone = check_data(DataCheckConfig(data=[str(file)]))
    assert result.check == alone
    assert [finding.severity for finding in alone.findings] == ["severe"]
    assert result.sentences == [
        f"2 pairs from 2 votes: {file}.",
        "1 tie, 0 both bad, 1 skipped.",
        "1 of 1 repeat preferred the other answer: such a vote is a tie.",
        "1 edit used, 0 left out.",
        WITHOUT_THOUGHT,
        f"Check of the pairs: 1 severe, 0 warnings, 0 notes (orpo-mlx data check {file}).",
        "severe: an answer holds the markers of a chat template.",
    ]
    facts = json.loads(json.dumps(result.facts))
    assert facts["file"] == str(file)
    assert (facts["counts"]["pairs"], facts["counts"]["pairs_of_edits"]) == (2, 1)
    assert facts["check"] == json.loads(json.dumps(report_json(alone)))


def test_an_answer_between_its_edit_and_the_other_one_is_a_ranking_not_a_contradiction(
    tmp_path: Path,
) -> None:
    edit = EditedAnswer(of=A.id, text="One, rewritten by hand.")
    folder_of(tmp_path, vote("i", A.id, B.id, "first", edit=edit))
    result = save_judged_pairs(tmp_path, "keep", lambda event: None)
    assert result.counts["pairs"] == 2
    assert result.check
    (both_ways,) = (f for f in result.check.findings if f.name == "both_ways")
    assert both_ways.severity == "note"
    assert not result.check.severe


def test_the_command_to_train_turns_thinking_off_for_edits_next_to_thoughts(tmp_path: Path) -> None:
    answers = [A, B]
    with opened(tmp_path, answers) as session:
        item = session.next_item("you")
        assert item
        edit = EditedAnswer(of=item.first.id, text="Three.")
        session.vote("you", "v", item.id, "second", edit=edit)
        for edits, shown in (("keep", " --thinking off --output "), ("drop", " 2e-4 --output ")):
            config = JudgeConfig(answers=[session.folder], edits=edits)
            outcome = compute_outcome(session, config, lambda event: None)
            assert shown in outcome.sentences[-1]


def test_without_the_libraries_of_the_check_it_is_named_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    events: list[Any] = []
    folder_of(tmp_path, vote("i", A.id, B.id, "first"))
    result = save_judged_pairs(tmp_path, "keep", events.append)
    assert result.check is None
    assert result.sentences == [f"1 pair from 1 vote: {tmp_path / PAIRS}."]
    (notice,) = [event for event in events if isinstance(event, Notice) and event.warning]
    assert notice.text.startswith(f"{tmp_path / PAIRS} is written, but not checked: ftfy is needed")
    assert notice.text.endswith(f"Install it with: {pip_install('check')}")
    assert (tmp_path / PAIRS).exists()


def test_no_pair_is_reported_and_nothing_is_written(tmp_path: Path) -> None:
    folder_of(tmp_path, vote("i", A.id, B.id, "both_bad"))
    result = save_judged_pairs(tmp_path, "keep", lambda event: None)
    assert result.sentences == [
        "No pair came of 1 vote, and none was written.",
        "0 ties, 1 both bad, 0 skipped.",
    ]
    assert (result.file, result.facts["file"], result.facts["check"]) == (None, None, None)
    assert not (tmp_path / PAIRS).exists()
