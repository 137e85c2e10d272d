"""One folder of judging: votes that are never lost, judges, the end, and who may open it."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice
from orpo_mlx.judging import json_lines
from orpo_mlx.judging.answers import append_answers, load_answers
from orpo_mlx.judging.session import Session, load_facts, open_session
from orpo_mlx.judging.votes import EditedAnswer, effective_votes, load_votes
from tests.judging.sessions import answer, opened, several, two_models

PAIRS, VERDICT = "judged-pairs", "judged-verdict"


def vote_next(session: Session, judge: str, choice: Any = "first", **more: Any) -> str:
    """Vote on what is shown next; its id."""
    item = session.next_item(judge)
    assert item is not None
    session.vote(judge, f"{judge}-{item.id}", item.id, choice, **more)
    return item.id


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of each, but of the lock, which has the time."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


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


def test_a_restart_while_the_folder_is_judged_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)) as session:
        vote_next(session, "you")
        before = files_of(session.folder)
        with (
            pytest.raises(OrpoError, match="is in use by process"),
            opened(tmp_path),
        ):
            raise AssertionError
        assert files_of(session.folder) == before


def test_the_folder_has_its_own_copy_of_the_answers(tmp_path: Path) -> None:
    answers = several(2)
    with opened(tmp_path, answers):
        pass
    (tmp_path / "answers.jsonl").unlink()
    folder = (tmp_path / PAIRS).rename(tmp_path / "moved")
    assert load_answers(folder / "answers.jsonl") == answers
    with open_session(JudgeConfig(answers=[folder]), print) as session:
        assert session.next_item("you") is not None


def test_another_beginning_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with opened(tmp_path, several(2), seed=1):
        pass
    before = files_of(tmp_path / PAIRS)
    append_answers(tmp_path / "answers.jsonl", [answer("more", "Third?")])
    with (
        pytest.raises(OrpoError) as error,
        opened(tmp_path, per_prompt=2, seed=2),
    ):
        raise AssertionError
    assert str(error.value) == (
        f"{tmp_path / PAIRS} holds a session that began otherwise: the answers are others; "
        "--per-prompt was 1, now 2; --seed was 1, now 2. Go on with it (orpo-mlx judge "
        f"{tmp_path / PAIRS}), or name another folder with --output."
    )
    assert files_of(tmp_path / PAIRS) == before
    # What is not given is as it was.
    with open_session(JudgeConfig(answers=[tmp_path / PAIRS]), print) as session:
        assert session.facts.seed == 1


def test_options_reach_the_plan(tmp_path: Path) -> None:
    answers = [*several(30), *(answer(f"Fourth {n}", f"Prompt {n}?", 3) for n in range(30))]
    with opened(tmp_path, answers) as session:
        assert len(session.facts.items) == 30 + 8
    with opened(tmp_path, per_prompt=2, output=tmp_path / "two") as other:
        assert len(other.facts.items) == 60 + 10
        assert other.facts.prompts == 30
    with opened(tmp_path, seed=1, output=tmp_path / "seed") as other:
        shown = [{item.first, item.second} for item in other.facts.items]
        assert shown != [{item.first, item.second} for item in session.facts.items]
    with (
        pytest.raises(OrpoError, match="a verdict asks each prompt once"),
        opened(tmp_path, purpose="verdict", per_prompt=2),
    ):
        raise AssertionError


def test_the_order_of_files_and_the_same_file_twice_change_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    append_answers(one, two_models(3)[:3])
    append_answers(two, two_models(3)[3:])
    for files in ([one, two], [two, one], [one, two, one]):
        config = JudgeConfig(answers=files, purpose="verdict")
        with open_session(config, print) as session:
            assert session.folder == files[0].parent / VERDICT
            assert session.facts.prompts == 3


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


def test_a_start_that_was_killed_begins_again(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)) as session:
        whole = files_of(session.folder)
    (tmp_path / PAIRS / "session.json").unlink()
    with opened(tmp_path) as session:
        assert files_of(session.folder)["session.json"] == whole["session.json"]


@pytest.mark.parametrize("names", [["notes"], ["notes", "answers.jsonl"], ["answers.jsonl"]])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, names: list[str]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in names:
        append_answers(folder / name, [answer("mine")])
    before = files_of(folder)
    with (
        pytest.raises(OrpoError, match="holds other files and no session"),
        opened(tmp_path, several(2), output=folder),
    ):
        raise AssertionError
    assert files_of(folder) == before


def test_the_file_that_sample_wrote_is_not_made_part_of_a_session(tmp_path: Path) -> None:
    with (
        pytest.raises(OrpoError, match="holds other files and no session"),
        opened(tmp_path, several(2), output=tmp_path),
    ):
        raise AssertionError
    assert list(files_of(tmp_path)) == ["answers.jsonl"]


def test_answers_that_cannot_be_judged_leave_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(OrpoError, match="no two answers of one model"),
        opened(tmp_path, [answer("alone")]),
    ):
        raise AssertionError
    assert not (tmp_path / PAIRS).exists()
    with (
        pytest.raises(OrpoError, match="is not the folder of a session"),
        open_session(JudgeConfig(answers=[tmp_path]), print),
    ):
        raise AssertionError
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with (
        pytest.raises(OrpoError, match=r"empty\.jsonl: no answers"),
        open_session(JudgeConfig(answers=[empty]), print),
    ):
        raise AssertionError


def test_a_session_is_not_copied_into_another_folder_by_output(tmp_path: Path) -> None:
    with opened(tmp_path, several(2)):
        pass
    config = JudgeConfig(answers=[tmp_path / PAIRS], output=tmp_path / "else")
    with (
        pytest.raises(OrpoError, match="go on with it without --output"),
        open_session(config, print),
    ):
        raise AssertionError
    assert not (tmp_path / "else").exists()


def test_what_there_is_to_judge_is_reported_with_what_was_left_out(tmp_path: Path) -> None:
    answers = [
        *two_models(25),
        answer("Same", "Equal?", name="one"),
        answer("same", "Equal?", name="two"),
        answer("alone", "Only?", name="one"),
    ]
    for number, own in enumerate(answers):
        if own.source.name == "two":
            warm = own.source.model_copy(update={"temperature": 1.0})
            answers[number] = own.model_copy(update={"source": warm})
    append_answers(tmp_path / "answers.jsonl", answers)
    events: list[Any] = []
    config = JudgeConfig(answers=[tmp_path / "answers.jsonl"], purpose="verdict")
    with open_session(config, events.append) as session:
        assert session.facts.prompts == 26
    assert [event.text for event in events if isinstance(event, Notice)] == [
        f"{tmp_path / VERDICT}: 25 x two answers to 26 prompts, 8 of them again with sides "
        "swapped.",
        "1 x equal answers of the two models: ties, not shown.",
        "left out: 1 x prompt that only one model answered",
        "The two models were sampled with another temperature, 0.8 and 1.0: a difference may be "
        "due to that.",
    ]


def test_guidelines_are_kept_in_the_folder(tmp_path: Path) -> None:
    text = tmp_path / "rules.md"
    text.write_text("Steps are *good*: 1. 2. 3. Ä", encoding="utf-8")
    with opened(tmp_path, several(2), guidelines=text) as session:
        assert session.guidelines == "Steps are *good*: 1. 2. 3. Ä"
    text.unlink()
    with opened(tmp_path) as session:
        assert session.guidelines == "Steps are *good*: 1. 2. 3. Ä"


def test_guidelines_that_cannot_be_read_leave_no_folder(tmp_path: Path) -> None:
    latin, pipe = tmp_path / "latin.md", tmp_path / "pipe"
    latin.write_bytes("Größe".encode("latin-1"))
    os.mkfifo(pipe)
    append_answers(tmp_path / "answers.jsonl", several(2))
    for file, why in (
        (latin, "--guidelines .*latin.md: cannot be read .not UTF-8 text"),
        (tmp_path / "none.md", "--guidelines .*none.md: cannot be read .No such file"),
        (pipe, "pipe is not a file"),
    ):
        with pytest.raises(OrpoError, match=why), opened(tmp_path, guidelines=file):
            raise AssertionError
    assert not (tmp_path / PAIRS).exists()


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("session.json", "{", "session.json is damaged"),
        ("session.json", "{}", "session.json: wrong or missing: answers_sum, items"),
        ("answers.jsonl", "", "4 answers of session.json are not in it"),
        ("votes.jsonl", '{"vote": 1}\n\nno\n{}\n', r"(?s)votes.jsonl:1: .*votes.jsonl:3: .*:4: "),
    ],
)
def test_damaged_files_are_named_with_their_lines_and_stay(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with opened(tmp_path, several(2)) as session:
        vote_next(session, "you")
    (tmp_path / PAIRS / name).write_text(content)
    with (
        pytest.raises(OrpoError, match=message),
        open_session(JudgeConfig(answers=[tmp_path / PAIRS]), print),
    ):
        raise AssertionError
    assert (tmp_path / PAIRS / name).read_text() == content
