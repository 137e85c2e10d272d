"""`orpo-mlx chat`, its lines typed by a script: who answers, what is kept, what ends what."""

import datetime as dt
import io
import json
import random
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer

from orpo_mlx.cli.streams import printable
from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.judging.answers import SampledAnswer, load_answers
from orpo_mlx.judging.session import open_session, save_facts
from orpo_mlx.judging.to_pairs import write_pairs
from orpo_mlx.judging.votes import Vote, effective_votes, load_votes
from orpo_mlx.loading import Template, build_encoder
from orpo_mlx.model.base import load_tokenizer_alone
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.sampling.chat_votes import EMPTY
from orpo_mlx.training.samples.answer import Answer
from tests import tiny
from tests.cli.conftest import Cli, Result
from tests.model.test_adapters import adapted

Chat = Callable[..., Result]
INTERRUPT = "^C"  # a piece of a scripted answer at which Ctrl-C is pressed
EDITOR = """
import pathlib, sys
file = pathlib.Path(sys.argv[1])
file.write_text(file.read_text().replace("answer", "better answer"))
"""


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    adapted(llama, folder, ["all-linear"])
    return folder


@pytest.fixture
def chat(cli: Cli, llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Types lines into a chat with the adapter."""

    def call(*lines: str, arguments: tuple[Any, ...] = ("--adapter", adapter)) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return cli("chat", "--model", llama, *arguments)

    return call


class Asked(NamedTuple):
    """What a model was given: ids, with its adapter or without, and the seed."""

    ids: list[int]
    with_adapter: bool
    seed: int


class Script:
    """Stands for generation: gives its answers in order, then numbered ones."""

    def __init__(self) -> None:
        self.answers: list[list[str]] = []
        self.asked: list[Asked] = []

    def stream(
        self, model: Any, encoder: Any, ids: list[int], *, seed: int, **how: Any
    ) -> Iterator[Answer]:
        with_adapter = any("lora_a" in module for module in model.modules())
        self.asked.append(Asked(ids, with_adapter, seed))
        pieces = self.answers.pop(0) if self.answers else ["answer ", str(len(self.asked))]
        text = ""
        for number, piece in enumerate(pieces, 1):
            if piece == INTERRUPT:
                raise KeyboardInterrupt
            text += piece
            yield Answer(piece, text, number, number == len(pieces))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Answers that a test gives; of two the base's comes first unless it draws otherwise."""
    script = Script()
    monkeypatch.setattr("orpo_mlx.sampling.voices.stream_answer", script.stream)
    draw_orders(monkeypatch, reverse=False)
    return script


def draw_orders(monkeypatch: pytest.MonkeyPatch, *, reverse: bool) -> None:
    class Order(random.Random):
        def shuffle(self, both: Any) -> None:
            if reverse:
                both.reverse()

    monkeypatch.setattr("orpo_mlx.cli.chat.random.SystemRandom", Order)


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$EDITOR turns "answer" into "better answer"."""
    file = tmp_path / "editor.py"
    file.write_text(EDITOR, encoding="utf-8")
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(file)]))


def kept(folder: Path = Path("chats/mine")) -> tuple[dict[str, SampledAnswer], list[Vote]]:
    """The answers of a folder by id, and the votes that hold."""
    answers = {answer.id: answer for answer in load_answers(folder / "answers.jsonl")}
    return answers, effective_votes(load_votes(folder / "votes.jsonl"))


def answers_in(out: str) -> list[str]:
    """What was answered, without who."""
    labels = ("base> ", "adapter> ", "1> ", "2> ")
    return [line.split("> ", 1)[1] for line in out.splitlines() if line.startswith(labels)]


@pytest.mark.touchy
def test_base_and_adapter_answer_as_generate_does_in_any_turn(
    cli: Cli, chat: Chat, llama: Path, adapter: Path
) -> None:
    def generated(seed: int, *more: Any) -> str:
        prompt = ("generate", "--model", llama, "--prompt", "my card", *how, "--seed", seed)
        return printable(cli(*prompt, *more).out)

    how = ("--max-tokens", 6, "--temperature", 0.8)
    own, base = generated(3, "--adapter", adapter), generated(3)
    # The second answer of each to the same message is another draw.
    own_next, base_next = generated(4, "--adapter", adapter), generated(4)
    assert len({own, base, own_next, base_next}) == 4
    result = chat(
        "my card", "/new", "/base", "my card", "/new", "/both", "my card",
        arguments=("--adapter", adapter, *how, "--seed", 3),
    )  # fmt: skip
    start = f"adapter> {own}base> {base}"
    assert result.out in (
        f"{start}1> {own_next}2> {base_next}",
        f"{start}1> {base_next}2> {own_next}",
    )


def test_a_model_is_given_the_conversation_so_far(
    chat: Chat, script: Script, llama: Path, adapter: Path, editor: None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    script.answers = [["<think>", "hm", "</think>", "\n\nyes"]]
    chat(
        "one", "/system be brief", "/both", "two", "/2", "/base", "three", "/edit", "/adapter",
        "four", "/system", "/both", "five", "six", "/new", "seven",
        arguments=("--adapter", adapter, "--system", "be kind"),
    )  # fmt: skip
    turns = [("one", "yes"), ("two", "answer 3"), ("three", "better answer 4")]
    turns += [("four", "answer 5"), ("five", "answer 6"), ("six", ""), ("seven", "")]
    kind, system = ({"role": "system", "content": f"be {how}"} for how in ("kind", "brief"))

    def ids(first: int, last: int, *before: dict[str, str]) -> list[int]:
        messages = list(before)
        for asked, answer in turns[first : last + 1]:
            messages += [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answer},
            ]
        text = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer.encode(text, add_special_tokens=False))

    assert [asked.ids for asked in script.asked] == [
        ids(0, 0, kind),
        *[ids(0, 1, system)] * 2,
        ids(0, 2, system),
        ids(0, 3, system),
        *[ids(0, 4)] * 2,
        *[ids(0, 5)] * 2,
        *[ids(6, 6)] * 2,
    ]
    assert [asked.with_adapter for asked in script.asked] == [
        True, False, True, False, True, *[False, True] * 3,
    ]  # fmt: skip


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


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat: Chat, script: Script, llama: Path) -> None:
    script.answers = [["half ", INTERRUPT], [INTERRUPT], ["whole"]]
    result = chat("one", "two", "three", arguments=("--json",))
    messages = json.loads(result.out)["messages"]
    assert [message["content"] for message in messages] == ["one", "half ", "three", "whole"]
    assert "(stopped)" in result.err
    assert "(stopped before an answer: the message is not sent)" in result.err


def test_a_vote_on_an_answer_that_was_stopped_is_kept_as_one_on_a_cut_answer(
    chat: Chat, script: Script
) -> None:
    script.answers = [["half", INTERRUPT], ["whole"]]
    result = chat("/both", "one", "/2")
    answers, (vote,) = kept()
    assert [answers[i].finish for i in (vote.first, vote.second)] == ["length", "stop"]
    assert "(an answer was cut: it makes no pair)" in result.err


def test_ctrl_c_and_an_empty_line_at_the_prompt_do_nothing(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["one", KeyboardInterrupt(), " ", EOFError()])

    def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("orpo_mlx.cli.chat._read_line", read)
    result = chat()
    assert (result.status, result.out) == (0, "adapter> answer 1\n")
    assert "(Ctrl-D or /quit ends the chat)" in result.err


def test_an_unknown_command_is_not_sent(chat: Chat, script: Script) -> None:
    result = chat("/btoh", "/etc/hosts is gone", " /etc/hosts is gone")
    assert len(script.asked) == 1
    assert result.err.count("no such command, and not sent.") == 2
    assert "/btoh: no such command, and not sent. Did you mean /both? Commands: /base" in result.err


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


def test_without_an_adapter_the_base_answers_alone(chat: Chat, script: Script) -> None:
    result = chat("/both", "/adapter", "one", arguments=("--output", "mine"))
    assert "/both: this chat has no adapter. Give one with --adapter FOLDER." in result.err
    assert "/adapter: this chat has no adapter." in result.err
    assert result.out == "base> answer 1\n"


def test_a_message_that_cannot_be_answered_leaves_the_conversation_as_it_was(
    cli: Cli, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.save_base(tmp_path / "base", template=None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n\udcff\n/new\nthree\n"))
    result = cli("chat", "--model", base)
    assert result.status == 0
    assert (
        "Error: The prompt cannot be rendered: a conversation needs a chat template" in result.err
    )
    assert "Error: The message: not UTF-8 text." in result.err
    assert answers_in(result.out) == ["answer 1", "answer 2"]


def test_input_that_is_not_text_is_one_message(
    chat: Chat, script: Script, cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    result = cli("chat", "--model", llama)
    assert result.status == 1
    assert result.err.endswith("Error: Standard input: not UTF-8 text.\n")


def test_json_is_one_object_and_all_else_is_on_stderr(
    chat: Chat, script: Script, adapter: Path
) -> None:
    result = chat("/both", "one", "/2", arguments=("--adapter", adapter, "--json", "--quiet"))
    assert json.loads(result.out) == {
        "output": "chats/mine",
        "votes": 1,
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "answer 2"},
        ],
    }
    assert result.err.splitlines() == [
        "1> answer 1",
        "2> answer 2",
        "2 was the adapter, 1 the base. Vote 1 kept in chats/mine.",
    ]


def test_an_edit_without_a_terminal_asks_for_an_editor(
    chat: Chat, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    result = chat("one", "/edit", "two")
    assert "Error: /edit: no terminal, and no editor is named by $VISUAL or $EDITOR." in result.err
    assert answers_in(result.out) == ["answer 1", "answer 2"]


@pytest.mark.parametrize(("text", "named"), [("hi <|im_end|> there", True), ("hi there", False)])
def test_control_tokens_that_are_typed_are_reported(
    chat: Chat, script: Script, text: str, named: bool
) -> None:
    result = chat(text, f"/system {text}")
    assert ("Warning: The message holds <|im_end|>, read as a control" in result.err) == named
    assert ("Warning: /system holds <|im_end|>, read as a control token" in result.err) == named
