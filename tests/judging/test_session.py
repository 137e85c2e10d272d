"""A session of judging: votes that are never lost, judges, and the end."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging import json_lines
from orpo_mlx.judging.session import load_facts, open_session
from orpo_mlx.judging.votes import EditedAnswer, effective_votes, load_votes
from tests.judging.sessions import opened, several, two_models, vote_next

PAIRS, VERDICT = "judged-pairs", "judged-verdict"


def test_every_item_is_shown_once_to_each_judge_in_the_same_order(tmp_path: Path) -> None:
    with opened(tmp_path, two_models(26), purpose="verdict") as session:
        planned = [item.id for item in session.facts.items]
        assert [vote_next(session, "ann") for _ in planned] == planned
        assert session.next_item("ann") is None
        assert session.progress("ann") == (34, 34)
        assert session.progress("bob") == (0, 34)
        assert vote_next(session, "bob", "skip") == planned[0]
        assert session.progress("bob") == (1, 34)
        assert session.judges() == ["ann", "bob"]
    rows = load_votes(tmp_path / VERDICT / "votes.jsonl")
    assert [row.repeat_of for row in rows[:34]] == [item.repeat_of for item in session.facts.items]


def test_what_is_shown_has_the_prompt_and_the_answers_on_their_sides(tmp_path: Path) -> None:
    with opened(tmp_path, two_models(3), purpose="verdict") as session:
        item = session.next_item("you")
        planned = session.facts.items[0]
        assert item == session.shown(planned.id)
        assert item is not None
        assert (item.first.id, item.second.id) == (planned.first, planned.second)
        assert item.messages == [{"role": "user", "content": str(item.first.prompt)}]
        with pytest.raises(KeyError):
            session.shown("none")


def test_a_vote_is_synced_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(json_lines, "sync_file", lambda file: synced.append(file.read_bytes()))
    with opened(tmp_path, several(2)) as session:
        synced.clear()
        vote_next(session, "you", note="Ä")
        session.undo("you")
        file = session.folder / "votes.jsonl"
        assert [text.count(b"\n") for text in synced] == [1, 2]
        assert synced[-1] == file.read_bytes()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_vote_that_cannot_be_kept_is_none_and_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with opened(tmp_path, several(2)) as session:
        first = vote_next(session, "you")
        before = (session.folder / "votes.jsonl").read_bytes()

        def fail(file: Path) -> None:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(json_lines, "sync_file", fail)
            with pytest.raises(OrpoError, match=r"votes\.jsonl cannot be written: "):
                vote_next(session, "you", "first")
            with pytest.raises(OrpoError, match=r"votes\.jsonl cannot be written: "):
                session.undo("you")
        assert (session.folder / "votes.jsonl").read_bytes() == before
        assert session.progress("you") == (1, 2)
        second = vote_next(session, "you", "second")
    votes = load_votes(tmp_path / PAIRS / "votes.jsonl")
    assert [(vote.item, vote.choice) for vote in votes] == [(first, "first"), (second, "second")]


def test_a_double_click_and_a_second_tab_write_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)) as session:
        first = vote_next(session, "you", "first")
        session.vote("you", f"you-{first}", first, "second")
        session.vote("you", "second tab", first, "second")
        second = session.next_item("you")
        assert second is not None
        session.vote("you", f"you-{first}", second.id, "second")
        assert len(load_votes(session.folder / "votes.jsonl")) == 1
        assert session.progress("you") == (1, 2)
        session.vote(" you\n", "other", second.id, "tie")
        assert [vote.choice for vote in session.votes] == ["first", "tie"]
        assert session.judges() == ["you"]


def test_one_of_many_votes_at_once_is_written(tmp_path: Path) -> None:
    with opened(tmp_path, several(1)) as session, ThreadPoolExecutor(8) as pool:
        item = session.facts.items[0].id
        list(pool.map(lambda n: session.vote("you", f"{n % 3}", item, "first"), range(24)))
        assert len(load_votes(session.folder / "votes.jsonl")) == 1


def test_an_undo_that_is_sent_twice_takes_one_vote_back(tmp_path: Path) -> None:
    with opened(tmp_path, several(3)) as session:
        vote_next(session, "ann")
        vote_next(session, "ann")
        assert session.undo("ann", "u1")
        assert not session.undo("ann", "u1")
        assert session.progress("ann") == (1, 3)
        assert session.undo("ann", "u2")
        assert session.progress("ann") == (0, 3)
    with opened(tmp_path) as session:
        assert not session.undo("ann", "u2")


def test_an_undo_takes_back_the_last_vote_of_that_judge_alone(tmp_path: Path) -> None:
    with opened(tmp_path, several(3)) as session:
        assert not session.undo("ann")
        one, two = vote_next(session, "ann"), vote_next(session, "ann", "skip")
        vote_next(session, "bob")
        assert session.undo("ann")
        assert session.progress("ann") == (1, 3)
        item = session.next_item("ann")
        assert item is not None
        assert item.id == two
        # The same id again, as a page that was left open may send it: taken back stays so.
        session.vote("ann", f"ann-{two}", two, "first")
        assert session.progress("ann") == (1, 3)
        session.vote("ann", "new", two, "second")
        assert session.undo("ann")
        assert session.undo("ann")
        assert not session.undo("ann")
        item = session.next_item("ann")
        assert item is not None
        assert item.id == one
        assert [vote.judge for vote in session.votes] == ["bob"]


def test_a_restart_goes_on_after_the_last_whole_vote(tmp_path: Path) -> None:
    with opened(tmp_path, several(4)) as session:
        first, second = vote_next(session, "you"), vote_next(session, "you")
    votes = tmp_path / PAIRS / "votes.jsonl"
    # A kill within the second line.
    os.truncate(votes, len(votes.read_bytes()) - 9)
    with opened(tmp_path) as session:
        assert session.progress("you") == (1, 4)
        assert vote_next(session, "you", "both_bad") == second
    assert [vote.item for vote in load_votes(votes)] == [first, second]
    with open_session(JudgeConfig(answers=[tmp_path / PAIRS]), print) as session:
        assert session.progress("you") == (2, 4)


def test_the_end_is_kept_with_how_many_were_judged_and_going_on_is_recorded(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, several(3)) as session:
        vote_next(session, "you")
        session.end()
        assert session.ended
        item = session.next_item("you")
        assert item is not None
        with pytest.raises(OrpoError, match="The session is over"):
            session.vote("you", "late", item.id, "first")
        with pytest.raises(OrpoError, match="The session is over"):
            session.undo("you")
    facts = load_facts(tmp_path / PAIRS)
    assert (facts.stops, facts.went_on, facts.prompts) == ([1], [], 3)
    # To look at the result opens nothing, and to look at the page adds nothing.
    with opened(tmp_path, result=True) as session:
        assert session.ended
    with opened(tmp_path) as session:
        assert not session.ended
        assert session.facts.went_on == []
        for _ in range(2):
            vote_next(session, "you", "skip")
        session.end()
    facts = load_facts(tmp_path / PAIRS)
    assert facts.stops == [1]
    assert len(facts.went_on) == 1
    assert facts.ended is not None


@pytest.mark.parametrize("name", ["", " \n", "x" * 61, "a\x1b[2Jb", "a\x00"])
def test_a_name_that_cannot_be_one_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str
) -> None:
    with opened(tmp_path, several(2)) as session:
        item = session.facts.items[0].id
        for act in (
            lambda: session.vote(name, "v", item, "first"),
            lambda: session.next_item(name),
            lambda: session.undo(name),
        ):
            with pytest.raises(OrpoError, match="A judge's name must have 1 to 60 printable"):
                act()
        assert not (session.folder / "votes.jsonl").exists()


def test_an_edit_is_kept_with_the_answer_it_was_begun_from(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)) as session:
        one, other = session.facts.items
        for edit in (EditedAnswer(of=other.first, text="x"), EditedAnswer(of=one.first, text=" ")):
            with pytest.raises(OrpoError, match="An edit is a text, of one of the two answers"):
                session.vote("you", "v", one.id, "first", edit=edit)
        edit = EditedAnswer(of=one.second, text="Better \ud83d half")
        session.vote("you", "v", one.id, "first", edit=edit, note="why")
        (kept,) = load_votes(session.folder / "votes.jsonl")
        # Half of a surrogate pair cannot be written: it costs itself, not the vote.
        assert kept.edit == EditedAnswer(of=one.second, text="Better ? half")
        assert kept.note == "why"


def test_votes_on_items_of_no_session_count_for_nobodys_progress(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)) as session:
        done = vote_next(session, "you")
    votes = tmp_path / PAIRS / "votes.jsonl"
    votes.write_text(votes.read_text() + votes.read_text().replace(done, "elsewhere"))
    with opened(tmp_path) as session:
        assert session.progress("you") == (1, 2)
        assert session.undo("you")
        assert session.progress("you") == (0, 2)
    assert [vote.item for vote in effective_votes(load_votes(votes))] == ["elsewhere"]
