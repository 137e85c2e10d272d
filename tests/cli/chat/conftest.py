"""A chat whose lines and answers are typed by a script."""

import io
import random
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpo_mlx.judging.answers import SampledAnswer, load_answers
from orpo_mlx.judging.votes import Vote, effective_votes, load_votes
from orpo_mlx.training.samples.answer import Answer
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
