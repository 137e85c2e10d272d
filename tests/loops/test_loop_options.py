"""Options of a loop: what is kept of them, what may change, and that each reaches a command."""

import json
from pathlib import Path

import pytest

from orpo_mlx.config.judging import LoopConfig
from orpo_mlx.judging.votes import EditedAnswer
from orpo_mlx.loops.state import load_loop
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
        f"{again} of these prompts were asked in an earlier round: there are no others on their "
        "side. Add some with --prompts before a round begins."
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
    thinking = [options(words)["--thinking"] for words in played.given if words[0] != "judge"]
    # Sampling for the first pairs comes before the question.
    assert thinking == [["on"], *([["off"] if edits == "keep" else ["on"]] * 5)]
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
    assert not [words for words in played.given if "off" in words]


def test_all_models_of_a_loop_have_one_date_and_one_thinking_switch(prompts: Path) -> None:
    """An adapter's own are those of its training, which a later round need not share."""
    played = Commands()
    played.loop(prompts, template_date=None)
    file = LOOP / "loop.json"
    today = json.loads(file.read_text())["settings"]["template_date"]
    file.write_text(file.read_text().replace(today, "2026-01-05"))  # as if it had begun then
    played.loop(prompts, template_date=None)
    assert played.count(f"--thinking on --template-date {today}") == 3
    assert played.count("--thinking on --template-date 2026-01-05") == 3


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


def test_what_a_killed_command_left_of_a_round_taken_back_is_not_gone_on_with(
    prompts: Path,
) -> None:
    left = LOOP / "round-1" / "pairs-answers.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("answers with other options\n")
    played = Commands()
    assert played.loop(prompts).round == 1
    assert "--resume" not in played.given[0]


def test_a_first_round_without_a_vote_may_begin_again_with_any_option(prompts: Path) -> None:
    """As where the name of the model was wrong."""
    played = Commands()
    played.before = lambda words: 1
    error_of(lambda: played.loop(prompts))
    sides = json.loads((LOOP / "loop.json").read_text())["sides"]
    played.before = lambda words: 0
    assert played.loop(prompts, model="other", seed=3, thinking="off").round == 1
    assert options(played.given[1])["--model"] == ["other"]
    assert played.count("--thinking off") == 3
    assert json.loads((LOOP / "loop.json").read_text())["sides"] != sides
    assert "--model: was other, now base" in error_of(lambda: played.loop(prompts))


def test_training_that_failed_may_be_tried_with_other_options(prompts: Path) -> None:
    """The votes of the round stay, and a checkpoint by the old options is not gone on with."""
    played = Commands()
    adapter = LOOP / "adapters/round-1"

    def die(words: Words) -> int:
        if words[0] == "train":
            save_checkpoint(adapter, 3)
        return -9 if words[0] == "train" else 0

    played.before = die
    message = error_of(lambda: played.loop(prompts))
    assert message.endswith(
        "Go on with: orpo-mlx loop evening (with another --train-config, if its options are why)"
    )
    played.before = lambda words: 0
    assert adapter.exists()
    assert not played.loop(prompts, train_config="smaller.yaml").stopped
    assert "Round 1 is trained again with other options." in played.notices
    assert played.names == [*ALL[:3], *ALL[2:]]
    assert "--config smaller.yaml --output" in " ".join(played.given[3])
    assert not {"--resume", "--overwrite"} & {*played.given[3]}


def test_a_round_that_was_trained_keeps_the_options_of_training(prompts: Path) -> None:
    played = Commands()
    played.before = lambda words: 130 if "verdict" in " ".join(words) else 0
    assert played.loop(prompts).stopped
    message = error_of(lambda: played.loop(prompts, train_config="smaller.yaml"))
    assert "--train-config: was None, now smaller.yaml" in message


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
    "forget_text": ("f.txt", ["--forget-text f.txt"] * 2),
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
