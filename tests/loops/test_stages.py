"""Rounds whose commands are played: what these are given, and going on at any point."""

import json
import os
from pathlib import Path

import pytest

from orpo_mlx.config.judging import LoopConfig
from orpo_mlx.judging.session import load_facts, save_facts
from orpo_mlx.judging.votes import EditedAnswer
from orpo_mlx.loops.state import load_loop
from orpo_mlx.run_folder.lock import locked
from tests.loops.scripted import Commands, Words, error_of, options, save_prompts

ALL = ["sample pairs", "judge pairs", "train", "sample verdict", "judge verdict"]
LOOP = Path("loops/evening")


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty prompts, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return save_prompts(Path("prompts.txt"), 40)


def test_a_round_is_five_commands(prompts: Path) -> None:
    played = Commands()
    result = played.loop(prompts, seed=7, max_tokens=96, judge="Ada")
    base = ["--model", "base", "--template-date", "2026-01-02"]
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
    played.loop(prompts)
    played.loop(prompts, continue_last=True, against="base")
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
        folder = Path("loops/evening/adapters/round-1")
        (folder / "checkpoints/step-0000003").mkdir(parents=True)
        for file in ("config.yaml", "checkpoints/step-0000003/state.json"):
            (folder / file).write_text("{}")
        return 130

    played.before = leave
    played.loop(prompts)
    played.before = lambda words: 0
    played.loop(prompts)
    assert [w for w in played.given[3] if w not in played.given[2]] == ["--resume"]


@pytest.mark.parametrize("purpose", ["pairs", "verdict"])
def test_a_session_that_is_over_is_not_opened_again(prompts: Path, purpose: str) -> None:
    """Its command was killed after the last vote; of a verdict also before its result."""
    stage = ALL.index(f"judge {purpose}")

    class Killed(BaseException):
        pass

    class EndsLate(Commands):
        def __call__(self, words: Words) -> int:
            status = super().__call__(words)
            if len(self.given) == stage + 1:
                raise Killed
            return status

    played = EndsLate()
    with pytest.raises(Killed):
        played.loop(prompts)
    played.loop(prompts)
    assert played.names == ALL

    if purpose == "verdict":
        state = load_loop(LOOP)
        assert state
        (LOOP / "loop.json").write_text(
            state.with_current(done=state.current.done[:4], ended=None).model_dump_json()
        )
        (LOOP / "round-1/verdict/verdict.json").unlink()
        played.loop(prompts)
        assert played.given[5] == [*played.given[4], "--result"]


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


@pytest.mark.parametrize(("status", "how"), [(1, "ended with 1"), (-9, "was ended by SIGKILL")])
def test_a_stage_that_fails_ends_the_loop_and_may_be_tried_again(
    prompts: Path, status: int, how: str
) -> None:
    played = Commands()
    played.before = lambda words: status if words[0] == "train" else 0
    message = error_of(lambda: played.loop(prompts))
    assert message == (
        f"Round 1 is not over: orpo-mlx train {how}; what it reported is above. Go on with: "
        "orpo-mlx loop evening"
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


def test_prompts_that_are_added_move_none_and_come_first(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts)
    before = load_loop(LOOP)
    assert before and len(before.sides) == 40
    more = save_prompts(Path("more.txt"), 60)
    played.loop(more)
    after = load_loop(LOOP)
    assert after and len(after.sides) == 60
    assert {prompt: after.sides[prompt] for prompt in before.sides} == before.sides
    for number, name in enumerate(("pair_prompts", "verdict_prompts")):
        used = [getattr(r, name) for r in after.rounds]
        side = ("pairs", "verdict")[number]
        assert {after.sides[p] for p in (*used[0], *used[1])} == {side}
        assert not {*used[0]} & {*used[1]}


def test_once_all_prompts_were_asked_they_are_asked_again_and_that_is_reported(
    prompts: Path,
) -> None:
    played = Commands()
    few = save_prompts(Path("few.txt"), 12)
    played.loop(few)
    assert not [text for text in played.notices if "earlier round" in text]
    played.loop(few)
    state = load_loop(LOOP)
    assert state
    again = sum(
        len({*getattr(state.rounds[0], n)} & {*getattr(state.rounds[1], n)})
        for n in ("pair_prompts", "verdict_prompts")
    )
    assert [text for text in played.notices if "earlier round" in text] == [
        f"{again} of these prompts were asked in an earlier round: all 12 were used. Add others "
        "with --prompts before a round begins."
    ]


def test_messages_tools_and_groups_reach_the_answers(tmp_path: Path, prompts: Path) -> None:
    system = [{"role": "system", "content": "Be kind."}]
    rows = [
        {"messages": [*system, {"role": "user", "content": f"{n}"}], "topic": f"topic {n % 2}"}
        for n in range(20)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    played = Commands()
    played.loop(file, group_by="topic")
    written = (LOOP / "round-1/verdict-prompts.jsonl").read_text().splitlines()
    assert len(written) > 0
    for line in written:
        row = json.loads(line)
        assert {"messages": row["messages"], "topic": row["group"]} in rows
    assert options(played.given[0])["--group-by"] == ["group"]


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


@pytest.mark.parametrize("edits", ["keep", "drop"])
def test_edits_next_to_thoughts_are_asked_about_once(prompts: Path, edits: str) -> None:
    played = Commands()
    played.thought, played.edits = "Let me see.", edits
    played.edit = EditedAnswer(of="", text="Twice as much.")
    for _ in range(2):
        played.loop(prompts)
    assert played.asked == 1
    for number in (1, 2):
        text = (LOOP / f"round-{number}/pairs/pairs.jsonl").read_text()
        assert ("Twice as much." in text) == (edits == "keep")
    thinking = [options(words).get("--thinking") for words in played.given if words[0] != "judge"]
    # Sampling for the first pairs comes before the question.
    assert thinking == [None, *([["off"] if edits == "keep" else None] * 5)]
    assert any("thinking is off" in text for text in played.notices) == (edits == "keep")


def test_edits_that_were_decided_by_an_option_are_not_asked_about(prompts: Path) -> None:
    played = Commands()
    played.thought, played.edit = "Let me see.", EditedAnswer(of="", text="Twice as much.")
    played.loop(prompts, edits="drop")
    assert played.asked == 0
    assert options(played.given[1])["--edits"] == ["drop"]
    assert "Twice as much." not in (LOOP / "round-1/pairs/pairs.jsonl").read_text()


def test_edits_without_thoughts_need_no_question(prompts: Path) -> None:
    played = Commands()
    played.edit = EditedAnswer(of="", text="Twice as much.")
    played.loop(prompts)
    assert played.asked == 0
    assert not [words for words in played.given if "--thinking" in words]


def test_options_that_contradict_those_of_the_loop_are_named(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts)
    message = error_of(lambda: played.loop(prompts, model="other", seed=3, answers=6))
    assert message == (
        "Loop evening has other settings, and it keeps them:\n"
        "  --model: was base, now other\n"
        "  --seed: was 0, now 3\n"
        "Leave them out (orpo-mlx loop evening), or begin a loop of another name."
    )
    assert len(played.given) == 5
    played.loop(prompts, answers=6, judge="Ada", port=8000)
    assert options(played.given[5])["-n"] == ["6"]


def test_a_round_keeps_its_options_from_the_first_vote_on(prompts: Path) -> None:
    played = Commands()
    played.before = lambda words: 130 if words[0] == "train" else 0
    played.loop(prompts)
    message = error_of(lambda: played.loop(prompts, answers=6))
    assert message == (
        "Loop evening has other settings, and round 1, which has votes, keeps them:\n"
        "  --answers: was 4, now 6\n"
        "Leave them out (orpo-mlx loop evening), or begin a loop of another name."
    )
    assert played.loop(prompts, judge="Ada").stopped


def test_a_round_without_a_vote_begins_again_with_other_options(prompts: Path) -> None:
    """As where all answers were cut, and the judge had nothing to see."""
    played = Commands()
    played.before = lambda words: 1 if words[0] == "judge" else 0
    message = error_of(lambda: played.loop(prompts))
    assert message.endswith(
        "Go on with: orpo-mlx loop evening (with other options, if they are why: there is no vote "
        "yet)"
    )
    played.before = lambda words: 0
    assert played.loop(prompts, max_tokens=512).round == 1
    assert played.notices[-7].startswith("Round 1 of evening: ")
    assert "Round 1 begins again with other options: it has no vote yet." in played.notices
    assert played.names == ALL[:2] + ALL
    assert options(played.given[2])["--max-tokens"] == ["512"]
    assert "--resume" not in played.given[2]


def test_too_few_prompts_are_an_error_before_anything_is_written(prompts: Path) -> None:
    one = save_prompts(Path("one.txt"), 1)
    message = error_of(lambda: Commands().loop(one))
    assert message.startswith("--prompts: 1 prompts leave none for ")
    assert not Path("loops").exists()


def test_a_damaged_state_is_an_error_that_names_the_file(prompts: Path) -> None:
    played = Commands()
    played.loop(prompts)
    file = LOOP / "loop.json"
    file.write_text(file.read_text().replace('"rounds"', '"round"'))
    assert error_of(lambda: played.loop(prompts)) == (
        f"{file} is damaged (wrong or missing: rounds)."
    )


# Option -> a value, and the words of the commands of two rounds that follow from it.
REACHES: dict[str, tuple[object, list[str]]] = {
    "model": ("other", ["--model other"] * 6),
    "revision": ("v2", ["--revision v2"] * 6),
    "trust_remote_code": (True, ["--trust-remote-code"] * 6),
    "keep_quantized": (True, ["--keep-quantized"] * 6),
    "eos_token": ("<end>", ["--eos-token <end>"] * 6),
    "chat_template": ("t.jinja", ["--chat-template t.jinja"] * 6),
    "template_args": ({"tone": "mild"}, ["--template-args tone=mild"] * 6),
    "thinking": ("off", ["--thinking off"] * 6),
    "template_date": ("2020-01-03", ["--template-date 2020-01-03"] * 6),
    "max_tokens": (96, ["--max-tokens 96"] * 4),
    "temperature": (0.5, ["--temperature 0.5"] * 4),
    "seed": (5, ["--seed 5"] * 4 + ["--seed 6"] * 4),
    "answers": (3, ["-n 3"] * 2),
    "train_config": ("t.yaml", ["--config t.yaml"] * 2),
    "continue_last": (True, ["t.yaml --adapter loops/evening/adapters/round-1"]),
    "against": ("base", ["--adapter loops/evening/adapters/round-2 --adapter base"]),
    "judge": ("Ada", ["--judge Ada"] * 4),
    "guidelines": ("g.md", ["--guidelines g.md"] * 4),
    "edits": ("drop", ["--edits drop"] * 2),
    "host": ("0.0.0.0", ["--host 0.0.0.0"] * 4),
    "port": (8000, ["--port 8000"] * 4),
    "open": (False, ["--no-open"] * 4),
}
# Shown by a test of their own: which prompts are asked, and where.
OTHERWISE = {"name", "prompts", "group_by", "pair_prompts", "verdict_prompts"}


def test_every_option_has_a_case() -> None:
    assert REACHES.keys() | OTHERWISE == LoopConfig.model_fields.keys()


def test_every_option_reaches_the_commands(prompts: Path) -> None:
    usual, changed = Commands(), Commands()
    for _ in range(2):
        usual.loop(prompts)
        changed.loop(prompts, name="other", **{name: value for name, (value, _) in REACHES.items()})
    for name, (_, expected) in REACHES.items():
        for words in {*expected}:
            assert changed.count(words.replace("evening", "other")) == expected.count(words), name
            assert usual.count(words) == 0, name
