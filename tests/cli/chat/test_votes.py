"""What a chat keeps: votes by /1, /2 and /edit, and nothing else."""

import datetime as dt
import random
from collections import Counter
from pathlib import Path

import pytest

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.judging.session import open_session, save_facts
from orpo_mlx.judging.to_pairs import write_pairs
from orpo_mlx.loading import Template, build_encoder
from orpo_mlx.model.base import load_tokenizer_alone
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.sampling.chat_votes import EMPTY
from tests.cli.chat.conftest import INTERRUPT, Chat, Script, answers_in, draw_orders, kept


def test_nothing_votes_but_a_choice_and_an_edit(chat: Chat, script: Script, editor: None) -> None:
    result = chat(
        "one", "/both", "two", "/tie", "three", "/base", "/adapter", "four", "/system", "/new",
        "/help", "/1", "/2", "/edit", "five", "/quit",
    )  # fmt: skip
    assert result.status == 0
    assert "Vote 1" not in result.out
    assert not Path("chats").exists()
    assert "/1: no two answers to choose from" in result.err
    assert "/edit: no answer yet" in result.err


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("choice", ["/1", "/2"])
def test_a_choice_is_kept_as_a_vote_and_shows_who_it_was(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch, reverse: bool, choice: str
) -> None:
    draw_orders(monkeypatch, reverse=reverse)
    result = chat("/both", "one", choice, choice)
    answers, (vote,) = kept()
    first, second = answers[vote.first], answers[vote.second]
    assert [first.text, second.text] == answers_in(result.out) == ["answer 1", "answer 2"]
    names = [first.source.name, second.source.name]
    assert names == (["mine", "base"] if reverse else ["base", "mine"])
    better, worse = (first, second) if choice == "/1" else (second, first)
    assert (vote.better, vote.worse) == (better.id, worse.id)
    names = ["base" if a.source.adapter is None else "adapter" for a in (better, worse)]
    number, other = choice[1], "21"[int(choice[1]) - 1]
    assert result.out.splitlines()[2:] == [
        f"{number} was the {names[0]}, {other} the {names[1]}. Vote 1 kept in chats/mine."
    ]
    assert f"{choice}: no two answers to choose from" in result.err
    assert "1 vote in chats/mine. Preference pairs of them: orpo-mlx judge" in result.err
    assert first.messages == second.messages == [{"role": "user", "content": "one"}]


def test_what_is_shown_before_a_vote_is_the_same_whoever_answered(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers in the order in which they are shown, so that only the order differs."""
    shown = []
    for reverse in (False, True):
        draw_orders(monkeypatch, reverse=reverse)
        script.asked.clear()
        script.answers = [["left"], ["right ", INTERRUPT], ["left"], ["Left "]]
        shown.append(chat("/both", "one", "two"))
        assert [asked.with_adapter for asked in script.asked] == [reverse, not reverse] * 2
    assert shown[0] == shown[1]
    assert "/1 or /2: the better one" in shown[0].err


def test_both_orders_are_drawn(chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orpo_mlx.cli.chat.random.SystemRandom", lambda: random.Random(5))
    chat("/both", *map(str, range(40)))
    firsts = [asked.with_adapter for asked in script.asked[::2]]
    # 40 fair draws lie outside 8 to 32 once in 10,000 seeds.
    assert 8 < sum(firsts) < 32


def test_equal_answers_are_not_voted_on(chat: Chat, script: Script) -> None:
    script.answers = [["The same"], ["the  same "]]
    result = chat("/both", "one", "/1")
    assert "(both answers are the same: nothing to vote on)" in result.err
    assert "/1: no two answers to choose from" in result.err
    assert not Path("chats").exists()


def test_an_edit_is_a_vote_for_it_and_the_last_one_holds(
    chat: Chat, script: Script, editor: None
) -> None:
    result = chat("one", "/edit", "/edit 1")
    answers, (vote,) = kept()
    (answer,) = answers.values()
    assert (vote.first, vote.second, vote.choice) == (answer.id, answer.id, "skip")
    assert vote.edit is not None
    assert (vote.edit.of, vote.edit.text) == (answer.id, "better better answer 1")
    assert [line.split(". ")[1] for line in result.out.splitlines()[1:]] == [
        "Vote 1 kept in chats/mine."
    ] * 2


@pytest.mark.parametrize(
    ("lines", "choice", "of"),
    [
        (["/edit", "/edit 2"], "skip", 1),
        (["/1", "/edit"], "first", 0),
        (["/2", "/edit 1", "/edit 2"], "second", 1),
    ],
)
def test_an_edit_of_one_of_two_answers_leaves_the_choice_as_it_was(
    chat: Chat, script: Script, editor: None, lines: list[str], choice: str, of: int
) -> None:
    result = chat("/both", "one", *lines, "two")
    answers, (vote,) = kept()
    shown = [answers[vote.first], answers[vote.second]]
    assert [answer.text for answer in shown] == ["answer 1", "answer 2"]
    assert vote.choice == choice
    assert vote.edit is not None
    assert (vote.edit.of, vote.edit.text) == (shown[of].id, f"better answer {of + 1}")
    refused = "Which of the two? /edit 1" if lines[0] == "/edit" else "without a number edits"
    assert (refused in result.err) == (len(lines) > 1 and lines != ["/1", "/edit"])


@pytest.mark.parametrize(
    ("command", "message"), [("true", "(nothing was changed: no vote)"), ("false", "false: ")]
)
def test_an_editor_that_changes_nothing_or_fails_leaves_the_chat_as_it_was(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", command)
    result = chat("one", "/edit", "two")
    assert message in result.err
    assert answers_in(result.out) == ["answer 1", "answer 2"]
    assert not Path("chats").exists()


def test_a_vote_on_an_answer_that_was_stopped_is_kept_as_one_on_a_cut_answer(
    chat: Chat, script: Script
) -> None:
    script.answers = [["half", INTERRUPT], ["whole"]]
    result = chat("/both", "one", "/2")
    answers, (vote,) = kept()
    assert [answers[i].finish for i in (vote.first, vote.second)] == ["length", "stop"]
    assert "(an answer was cut: it makes no pair)" in result.err


def test_a_second_chat_on_a_folder_is_refused(chat: Chat, script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "votes"
    with locked(folder, lambda event: None):
        result = chat("one", arguments=("--output", folder))
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"Error: {folder} is in use by process ")
    assert script.asked == []


def test_the_folder_of_another_session_is_refused(
    chat: Chat, script: Script, tmp_path: Path
) -> None:
    save_facts(tmp_path, EMPTY.model_copy(update={"answers_sum": "12ab"}))
    result = chat("one", arguments=("--output", tmp_path))
    assert result.status == 1
    assert "is a session of orpo-mlx judge: name another folder with --output" in result.err


def test_another_chat_on_a_folder_adds_its_votes(chat: Chat, script: Script, editor: None) -> None:
    for _ in range(2):
        chat("/both", "one", "/1", "/edit")
    answers, votes = kept()
    assert (len(answers), [vote.choice for vote in votes]) == (4, ["first"] * 2)
    assert all(vote.edit for vote in votes)
    assert [asked.seed for asked in script.asked] == [0] * 4


def test_votes_become_pairs_with_the_prompt_that_the_model_was_given(
    chat: Chat, script: Script, editor: None, llama: Path
) -> None:
    chat("one", "/both", "two", "/2", "three", "/edit 1", "/base", "four", "/edit")
    result = write_pairs(Path("chats/mine"))
    assert (result.counts["votes"], result.counts["edits"], result.counts["pairs"]) == (1, 2, 3)
    pairs = load_pairs(Path("chats/mine/pairs.jsonl"))
    pairs.sort(key=lambda pair: len(pair.prompt))
    texts = [(pair.chosen["content"], pair.rejected["content"]) for pair in pairs]
    assert texts == [
        ("answer 3", "answer 2"),
        ("better answer 4", "answer 4"),
        ("better answer 6", "answer 6"),
    ]
    base = load_tokenizer_alone(str(llama))
    encoder = build_encoder(base, Template("auto", {}, dt.date(2000, 1, 1)), thinking=True)
    for pair, number in zip(pairs, (2, 4, 6), strict=True):
        prompt, *_ = encoder.encode(pair, encoder.render_pair(pair, Counter()))
        assert prompt == script.asked[number - 1].ids


def test_others_can_judge_what_was_voted_on_in_a_chat(chat: Chat, script: Script) -> None:
    chat("/both", "one", "/2", "/new", "two", "/1")
    folder = Path("chats/mine")
    with open_session(JudgeConfig(answers=[folder]), lambda event: None) as session:
        assert session.progress("you") == (2, 2)
        assert session.progress("anna") == (0, 2)
        item = session.next_item("anna")
        assert item is not None
        assert (item.first.text, item.second.text) == ("answer 1", "answer 2")
        session.vote("anna", "v", item.id, "first")
    assert chat("three", "/both", "four", "/1").status == 0
    result = write_pairs(folder)
    # Two judges who disagree on one: no pair of it.
    assert (result.counts["votes"], result.counts["pairs"]) == (4, 2)


def test_an_edit_without_a_terminal_asks_for_an_editor(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    result = chat("one", "/edit", "two")
    assert "Error: /edit: no terminal, and no editor is named by $VISUAL or $EDITOR." in result.err
    assert answers_in(result.out) == ["answer 1", "answer 2"]
