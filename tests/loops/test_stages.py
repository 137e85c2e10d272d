"""Rounds whose commands are played: what these are given, and going on at any point."""

import os
from pathlib import Path

import pytest

from orpo_mlx.judging.session import load_facts, save_facts
from orpo_mlx.loops.state import load_loop
from orpo_mlx.run_folder.lock import locked
from tests.loops.scripted import (
    ALL,
    LOOP,
    Commands,
    Words,
    error_of,
    options,
    save_checkpoint,
    save_prompts,
)


def test_a_round_is_five_commands(prompts: Path) -> None:
    played = Commands()
    result = played.loop(prompts, seed=7, max_tokens=96, judge="Ada")
    base = ["--model", "base", "--thinking", "on", "--template-date", "2026-01-02"]
    draw = [*base, "--max-tokens", "96", "--temperature", "0.8", "--adapter"]
    own = "loops/evening/round-1"
    assert played.given == [
        ["sample", *draw, "base", "--prompts", f"{own}/pairs-prompts.jsonl", "-n", "4",
         "--seed", "7", "--output", f"{own}/pairs-answers.jsonl"],
        ["judge", f"{own}/pairs-answers.jsonl", "--for", "pairs", "--output", f"{own}/pairs",
         "--seed", "7", "--judge", "Ada"],
        ["train", *base, "--data", f"{own}/pairs/pairs.jsonl", "--epochs", "3", "--batch-size",
         "4", "--learning-rate", "2e-4", "--output", "loops/evening/adapters/round-1"],
        ["sample", *draw, "loops/evening/adapters/round-1", "--adapter", "base", "--prompts",
         f"{own}/verdict-prompts.jsonl", "-n", "1", "--seed", "7", "--output",
         f"{own}/verdict-answers.jsonl"],
        ["judge", f"{own}/verdict-answers.jsonl", "--for", "verdict", "--output",
         f"{own}/verdict", "--seed", "7", "--judge", "Ada"],
    ]  # fmt: skip
    shown = [text for text in played.notices if text.startswith("$")]
    assert shown == ["$ orpo-mlx " + " ".join(words) for words in played.given]
    assert (result.round, result.stopped, result.pairs) == (1, False, 4)
    assert result.adapter == LOOP / "adapters/round-1"
    assert result.page == LOOP / "round-1/verdict/verdict.html"
    # 8 of 8: p is 2/256; Wilson's interval of 8/8 begins at 8 / (8 + 1.96^2) = 0.676
    assert result.sentences == [
        "You preferred the adapter in 8 of 8 decided prompts (100 %, 68 to 100); 0 ties and 0 "
        "both-bad apart.",
        "Nothing was forgotten.",
    ]
    assert result.advice == ["The next round: orpo-mlx loop evening"]


def test_the_votes_and_what_they_can_show_are_reported_before_the_first_answer(
    prompts: Path,
) -> None:
    played = Commands()
    played.loop(prompts, pair_prompts=24, verdict_prompts=6)
    assert played.notices[0] == (
        "Round 1 of evening: up to 24 + 6 votes (for pairs, for the verdict), and 8 + 0 of them a "
        "second time, which shows how steady they are."
    )
    assert played.notices[1].startswith("The verdict: 6 prompts, if all are decided, would show ")
    assert played.notices[2].startswith("$ orpo-mlx sample ")


def test_the_next_round_trains_from_the_base_on_the_pairs_of_all(prompts: Path) -> None:
    played = Commands()
    first, second = played.loop(prompts), played.loop(prompts)
    assert (first.round, second.round) == (1, 2)
    sampled, judged, trained, verdict, _ = map(options, played.given[5:])
    assert sampled["--adapter"] == ["loops/evening/adapters/round-1"]
    assert trained["--data"] == [f"loops/evening/round-{n}/pairs/pairs.jsonl" for n in (1, 2)]
    assert "--adapter" not in trained
    assert trained["--output"] == ["loops/evening/adapters/round-2"]
    models = [f"loops/evening/adapters/round-{n}" for n in (2, 1)]
    assert verdict["--adapter"] == models
    # Answers to a prompt of both rounds, and sides, are drawn by other seeds.
    assert sampled["--seed"] == judged["--seed"] == verdict["--seed"] == ["1"]


def test_continue_starts_from_the_last_adapter_and_against_base_asks_the_other(
    prompts: Path,
) -> None:
    played = Commands()
    assert played.loop(prompts).continued is None
    result = played.loop(prompts, continue_last=True, against="base")
    assert result.continued == Path("loops/evening/adapters/round-1")
    notice = "--continue: training goes on from loops/evening/adapters/round-1, not from the base."
    assert notice in played.notices
    trained, verdict = options(played.given[7]), options(played.given[8])
    assert trained["--adapter"] == ["loops/evening/adapters/round-1"]
    assert len(trained["--data"]) == 2
    assert verdict["--adapter"] == ["loops/evening/adapters/round-2", "base"]


def test_a_first_round_with_continue_starts_from_the_base(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts, continue_last=True)
    assert "--adapter" not in options(played.given[2])


def test_options_of_train_come_from_a_file(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts, train_config="mine.yaml")
    trained = options(played.given[2])
    assert trained["--config"] == ["mine.yaml"]
    assert not {"--epochs", "--batch-size", "--learning-rate"} & trained.keys()


@pytest.mark.parametrize("stage", range(5))
def test_a_loop_that_was_left_goes_on_at_that_stage(prompts: Path, stage: int) -> None:
    played = Commands()
    played.before = lambda words: 130 if len(played.given) == stage + 1 else 0
    assert played.loop(prompts).stopped
    assert played.names == ALL[: stage + 1]
    played.before = lambda words: 0
    result = played.loop(prompts)
    assert (result.stopped, result.round) == (False, 1)
    assert played.names == ALL[: stage + 1] + ALL[stage:]
    assert played.given[stage] == played.given[stage + 1]
    assert "8 of 8" in result.sentences[0]


@pytest.mark.parametrize("stage", range(5))
def test_a_loop_that_was_killed_in_a_stage_goes_on_in_it(prompts: Path, stage: int) -> None:
    """With what the stage has left behind, and nothing recorded of it."""

    class Killed(BaseException):
        pass

    played = Commands()

    def kill(words: Words) -> int:
        if len(played.given) <= stage:
            return 0
        output = Path(options(words)["--output"][0])
        if words[0] == "train":
            output.mkdir(parents=True)
            (output / "config.yaml").touch()
        elif words[0] == "sample":
            output.touch()
        raise Killed

    played.before = kill
    with pytest.raises(Killed):
        played.loop(prompts)
    played.before = lambda words: 0
    result = played.loop(prompts)
    assert played.names == ALL[: stage + 1] + ALL[stage:]
    again = [word for word in played.given[stage + 1] if word not in played.given[stage]]
    assert (
        again
        == {"sample": ["--resume"], "train": ["--overwrite"], "judge": []}[played.given[stage][0]]
    )
    assert result.pairs == 4


def test_training_goes_on_from_a_checkpoint(prompts: Path) -> None:
    played = Commands()

    def leave(words: Words) -> int:
        if words[0] != "train":
            return 0
        save_checkpoint(Path("loops/evening/adapters/round-1"), 3)
        return 130

    played.before = leave
    played.loop(prompts)
    played.before = lambda words: 0
    played.loop(prompts)
    assert [w for w in played.given[3] if w not in played.given[2]] == ["--resume"]


@pytest.mark.parametrize(("purpose", "again"), [("pairs", []), ("verdict", ["judge verdict"])])
def test_a_session_that_is_over_is_not_opened_again(
    prompts: Path, purpose: str, again: list[str]
) -> None:
    """Its command was killed after the last vote. A verdict is computed again, without the page."""

    class Killed(BaseException):
        pass

    class EndsLate(Commands):
        def __call__(self, words: Words) -> int:
            status = super().__call__(words)
            if self.names == ALL[: ALL.index(f"judge {purpose}") + 1]:
                raise Killed
            return status

    played = EndsLate()
    with pytest.raises(Killed):
        played.loop(prompts)
    played.loop(prompts)
    assert played.names == ALL + again
    assert [words for words in played.given if "--result" in words] == (
        [[*played.given[4], "--result"]] if again else []
    )


def test_a_round_whose_end_was_not_recorded_comes_to_the_same_end(prompts: Path) -> None:
    played = Commands()
    result = played.loop(prompts)
    state = load_loop(LOOP)
    assert state
    (LOOP / "loop.json").write_text(state.with_current(ended=None).model_dump_json())
    assert played.loop(prompts) == result
    assert played.names == ALL


def test_a_session_that_was_left_open_is_gone_on_with(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts)
    state = load_loop(LOOP)
    assert state
    (LOOP / "loop.json").write_text(
        state.with_current(done=state.current.done[:1], ended=None).model_dump_json()
    )
    session = LOOP / "round-1/pairs"
    save_facts(session, load_facts(session).model_copy(update={"ended": None}))
    played.before = lambda words: 130
    assert played.loop(prompts).stopped
    assert played.given[5] == played.given[1]
    Path(played.given[1][1]).unlink()  # the answers, of which the session has a copy
    assert played.loop(prompts).stopped
    assert played.given[6] == ["judge", str(session), *played.given[1][2:]]
    played.before = lambda words: 0
    assert not played.loop(prompts).stopped


@pytest.mark.parametrize(("status", "how"), [(1, "ended with 1"), (-9, "was ended by SIGKILL")])
def test_a_stage_that_fails_ends_the_loop_and_may_be_tried_again(
    prompts: Path, status: int, how: str
) -> None:
    played = Commands()
    played.before = lambda words: status if words[0] == "train" else 0
    message = error_of(lambda: played.loop(prompts))
    assert message == (
        f"Round 1 is not over: orpo-mlx train {how}; what it reported is above. Go on with: "
        "orpo-mlx loop evening (with another --train-config, if its options are why)"
    )
    played.before = lambda words: 0
    played.loop(prompts)
    assert played.names == ALL[:3] + ALL[2:]


def test_a_second_loop_of_that_name_is_refused(prompts: Path) -> None:
    played = Commands()
    with locked(LOOP, lambda event: None):
        message = error_of(lambda: played.loop(prompts))
    assert message.startswith(f"{LOOP} is in use by process {os.getpid()} on ")
    assert not played.given


def test_a_round_without_a_pair_trains_nothing(prompts: Path) -> None:
    played = Commands()
    played.choose = lambda item: "tie"
    result = played.loop(prompts)
    assert played.names == ALL[:2]
    assert (result.pairs, result.adapter, result.page, result.sentences) == (0, None, None, [])
    assert result.advice[0].startswith("No pair came of this round's votes, so nothing was trained")
    played.choose = Commands().choose
    assert played.loop(prompts).pairs == 4
    sampled, _, trained, verdict, _ = map(options, played.given[2:])
    assert sampled["--adapter"] == ["base"]
    assert trained["--data"] == ["loops/evening/round-2/pairs/pairs.jsonl"]
    assert verdict["--adapter"] == ["loops/evening/adapters/round-2", "base"]


def test_a_session_that_was_ended_without_a_vote_trains_nothing(prompts: Path) -> None:
    class Silent(Commands):
        def _vote(self, session):  # type: ignore[no-untyped-def]
            session.end()

    assert Silent().loop(prompts).pairs == 0


def test_too_few_prompts_are_an_error_before_anything_is_written(prompts: Path) -> None:
    one = save_prompts(Path("one.txt"), 1)
    message = error_of(lambda: Commands().loop(one))
    assert message.startswith("--prompts: 1 prompt, and none for ")
    assert not Path("loops").exists()


def test_a_damaged_state_is_an_error_that_names_the_file(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts)
    file = LOOP / "loop.json"
    file.write_text(file.read_text().replace('"rounds"', '"round"'))
    assert error_of(lambda: played.loop(prompts)) == (
        f"{file} is damaged (wrong or missing: rounds)."
    )
