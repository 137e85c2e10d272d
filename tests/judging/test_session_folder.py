"""The folder of a session: made of answers, gone on with, refused where it is something else."""

import os
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice
from orpo_mlx.judging.answers import append_answers, load_answers
from orpo_mlx.judging.power import power_sentence
from orpo_mlx.judging.results import power_notes
from orpo_mlx.judging.session import open_session
from tests.judging.sessions import answer, files_of, opened, several, two_models, vote_next

PAIRS, VERDICT = "judged-pairs", "judged-verdict"


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


@pytest.mark.parametrize("changes", [{"first": "ghost"}, {"repeat_of": "x"}, {"swap": True}])
def test_votes_on_other_answers_than_were_shown_are_named(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with opened(tmp_path, two_models(3), purpose="verdict") as session:
        vote_next(session, "you")
        (vote,) = session.votes
    if changes.pop("swap", False):
        changes |= {"first": vote.second, "second": vote.first}
    changed = vote.model_copy(update=changes)
    (tmp_path / VERDICT / "votes.jsonl").write_text(changed.model_dump_json() + "\n")
    with (
        pytest.raises(OrpoError, match=f"not on what was shown:\n  vote '{vote.vote}': "),
        open_session(JudgeConfig(answers=[tmp_path / VERDICT]), print),
    ):
        raise AssertionError


def test_the_power_is_that_of_the_prompts_which_are_not_ties_already(tmp_path: Path) -> None:
    equal = [answer("Alike", "More?", name=name) for name in ("one", "two")]
    with opened(tmp_path, [*two_models(8), *equal], purpose="verdict") as session:
        assert session.facts.prompts == 9
        assert power_notes(session) == [power_sentence(8)]
