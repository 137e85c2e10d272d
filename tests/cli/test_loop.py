"""`orpo-mlx loop` with its commands played: settings that are kept, text, JSON and questions."""

import json
import sys
from pathlib import Path

import pytest

from orpo_mlx.judging.votes import EditedAnswer
from tests.cli.conftest import Cli
from tests.loops.scripted import Commands, save_prompts

FIRST = ("loop", "evening", "--model", "base", "--pair-prompts", 4, "--verdict-prompts", 8)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr("orpo_mlx.loops.child.run_command", commands)
    return commands


def test_a_round_prints_its_verdict_and_what_is_next(cli: Cli, played: Commands) -> None:
    prompts = save_prompts(Path("prompts.txt"), 40)
    result = cli(*FIRST, "--prompts", prompts)
    assert result.status == 0
    assert result.out == (
        "Round 1 of evening is over.\n"
        "You preferred the adapter in 8 of 8 decided prompts (100 %, 68 to 100); 0 ties and 0 "
        "both-bad apart.\n"
        "Nothing was forgotten.\n"
        "The adapter: loops/evening/adapters/round-1\n"
        "The verdict's page: loops/evening/round-1/verdict/verdict.html\n"
        "The next round: orpo-mlx loop evening\n"
    )
    lines = result.err.splitlines()
    assert lines[0].startswith("Round 1 of evening: up to 4 + 8 votes")
    assert [line for line in lines if line.startswith("$ ")] == [
        f"$ orpo-mlx {' '.join(words)}" for words in played.given
    ]


def test_a_loop_that_exists_needs_its_name_alone(cli: Cli, played: Commands) -> None:
    cli(*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40), "--max-tokens", 96, "--quiet")
    result = cli("loop", "evening", "--json", "--judge", "Ada")
    facts = json.loads(result.out)
    assert (facts["round"], facts["pairs"], facts["stopped"]) == (2, 4, False)
    assert facts["adapter"] == "loops/evening/adapters/round-2"
    assert facts["page"] == "loops/evening/round-2/verdict/verdict.html"
    assert facts["advice"][-1] == "The next round: orpo-mlx loop evening"
    first, second = played.given[:5], played.given[5:]
    assert all(words[-1] == "--quiet" for words in first)
    assert played.count("--max-tokens 96") == 4
    assert all("Ada" in words for words in second if words[0] == "judge")


def test_an_adapter_that_was_trained_further_is_shown_as_such(cli: Cli, played: Commands) -> None:
    cli(*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40))
    result = cli("loop", "evening", "--continue")
    assert (
        "The adapter: loops/evening/adapters/round-2, trained further from "
        "loops/evening/adapters/round-1 (--continue)\n"
    ) in result.out


def test_a_round_that_was_left_ends_with_130_and_how_to_go_on(cli: Cli, played: Commands) -> None:
    played.before = lambda words: 130 if words[0] == "judge" else 0
    result = cli(*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40))
    assert (result.status, result.out) == (130, "Stopped. Go on with: orpo-mlx loop evening\n")
    played.before = lambda words: 0
    result = cli("loop", "evening")
    assert result.status == 0
    assert result.err.splitlines()[0] == "Going on with round 1 at: judge pairs"


def test_an_interrupt_between_stages_ends_with_130_too(cli: Cli, played: Commands) -> None:
    def interrupt(words: object) -> int:
        raise KeyboardInterrupt

    played.before = interrupt
    result = cli(*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40))
    assert (result.status, result.out) == (130, "")
    assert result.err.endswith("Stopped. Go on with: orpo-mlx loop evening\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: 0.1", "t.yaml: lr: no such option"),
        ("rank: 0", "t.yaml: rank 0: must be at least 1."),
        ("output: o\ndata: d\nresume: true", "t.yaml: data, output, resume: set by the loop"),
        ("adapter: a\nthinking: off", "t.yaml: adapter, thinking: set by the loop; leave out."),
        (None, "--train-config t.yaml: cannot be read (No such file or directory)."),
    ],
)
def test_options_of_train_are_checked_before_anybody_votes(
    cli: Cli, played: Commands, text: str | None, problem: str
) -> None:
    if text:
        Path("t.yaml").write_text(text)
    prompts = save_prompts(Path("prompts.txt"), 40)
    result = cli(*FIRST, "--prompts", prompts, "--train-config", "t.yaml")
    assert result.status == 1 and problem in result.err
    assert not played.given and not Path("loops").exists()


def test_good_options_of_train_reach_it_as_their_file(cli: Cli, played: Commands) -> None:
    Path("t.yaml").write_text("steps: 3\nlearning-rate: 1.0e-3\nvalid_fraction: 0\n")
    prompts = save_prompts(Path("prompts.txt"), 40)
    result = cli(*FIRST, "--prompts", prompts, "--train-config", "t.yaml")
    assert result.status == 0, result.err
    (train,) = (words for words in played.given if words[0] == "train")
    assert train[train.index("--config") + 1] == "t.yaml"


def test_guidelines_are_read_before_an_answer_is_sampled(cli: Cli, played: Commands) -> None:
    prompts = save_prompts(Path("prompts.txt"), 40)
    result = cli(*FIRST, "--prompts", prompts, "--guidelines", "g.md")
    assert (result.status, played.given) == (1, [])
    assert result.err == "Error: --guidelines g.md: cannot be read (No such file or directory).\n"


def test_a_text_that_cannot_be_measured_is_refused_before_anybody_votes(
    cli: Cli, played: Commands
) -> None:
    Path("f.txt").write_text("One paragraph alone.\n")
    prompts = save_prompts(Path("prompts.txt"), 40)
    result = cli(*FIRST, "--prompts", prompts, "--forget-text", "f.txt")
    assert (result.status, played.given) == (1, [])
    assert "--forget-text f.txt: must hold 2 paragraphs" in result.err


@pytest.mark.parametrize("name", ["a/b", "..", "", "-x"])
def test_a_name_is_that_of_one_folder(cli: Cli, name: str) -> None:
    result = cli("loop", "--model", "base", "--prompts", "p.txt", "--", name)
    assert result.status == 1
    assert not Path("loops").exists()


def test_what_a_first_round_lacks_is_named_at_once(cli: Cli) -> None:
    result = cli("loop", "evening")
    assert result.status == 1
    assert "--model is missing" in result.err and "--prompts is missing" in result.err


def test_what_judging_needs_is_missed_before_an_answer_is_sampled(
    cli: Cli, played: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    result = cli(*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40))
    assert result.status == 1
    assert "[judge]" in result.err
    assert not played.given and not Path("loops").exists()


def test_nobody_can_be_asked_about_edits_without_a_terminal(cli: Cli, played: Commands) -> None:
    played.thought, played.edit = "Let me see.", EditedAnswer(of="", text="Twice as much.")
    given = [*FIRST, "--prompts", save_prompts(Path("prompts.txt"), 40)]
    result = cli(*given)
    assert result.status == 1
    assert result.err.splitlines()[-1] == (
        "Error: Answers that you edited have no thought, others do. Keep the edits and train with "
        "thinking off, or drop them? Give --edits keep or --edits drop."
    )
    assert len(played.given) == 2
    assert cli("loop", "evening", "--edits", "drop").status == 0
    assert played.names[2:] == ["train", "sample verdict", "judge verdict"]
