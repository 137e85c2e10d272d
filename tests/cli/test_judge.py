import _thread
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.install_advice import pip_install
from orpo_mlx.judging.answers import append_answers
from orpo_mlx.judging.server import serve
from orpo_mlx.judging.votes import load_votes
from tests.cli.conftest import Cli
from tests.judging.server.fake import answer, source
from tests.judging.server.visitor import Visitor

pytestmark = pytest.mark.touchy
Visit = Callable[[Visitor], object]


def save_answers(file: Path, names: tuple[str, ...] = ("base",), prompts: int = 4) -> Path:
    """Two unlike answers of each model to each prompt."""
    words = ("Open the app and log in.", "Please call the bank, it is open all day.")
    append_answers(
        file,
        [
            answer(n, f"{words[(n + len(name)) % 2]} {prompt}", id=f"{name}-{prompt}-{n}",
                   prompt=f"How do I do {prompt}?", source=source(name))
            for name in names for prompt in range(prompts) for n in range(2)
        ],
    )  # fmt: skip
    return file


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Visit], list[threading.Thread]]:
    """Lets a visitor judge in a thread, in place of the browser that is opened."""
    monkeypatch.setattr(serve, "OTHERS_SECONDS", 0.0)
    monkeypatch.setattr("orpo_mlx.cli.judge._has_screen", lambda: True)

    def visits(visit: Visit) -> list[threading.Thread]:
        threads = list[threading.Thread]()

        def open_browser(link: str) -> bool:
            thread = threading.Thread(target=lambda: visit(Visitor(link)), daemon=True)
            threads.append(thread)
            thread.start()
            return True

        monkeypatch.setattr("webbrowser.open", open_browser)
        return threads

    return visits


def judge_all(visitor: Visitor) -> None:
    visitor.vote_all()
    visitor.end()


def test_votes_on_the_page_become_pairs(cli: Cli, tmp_path: Path, visits: Any) -> None:
    file = save_answers(tmp_path / "answers.jsonl")
    visits(judge_all)
    result = cli("judge", file)
    folder = tmp_path / "judged-pairs"
    assert result.status == 0, result.err
    assert re.search(r"judged-pairs: 4 x two answers to 4 prompts\.$", result.err, re.M)
    assert re.search(r"^Judge here: http://127\.0\.0\.1:\d+/\?token=[\w-]{32}$", result.err, re.M)
    assert f"4 pairs from 4 votes: {folder / 'pairs.jsonl'}." in result.out
    assert re.search(r"votes +│ +4 ", result.out)
    assert f"orpo-mlx train --model m --data {folder / 'pairs.jsonl'}" in result.out
    votes = {vote.better: vote.worse for vote in load_votes(folder / "votes.jsonl")}
    texts = {
        a.id: a.text for a in map(_answer_of, (folder / "answers.jsonl").read_text().splitlines())
    }
    pairs = load_pairs(folder / "pairs.jsonl")
    assert {(p.chosen["content"], p.rejected["content"]) for p in pairs} == {
        (texts[str(better)], texts[str(worse)]) for better, worse in votes.items()
    }


def _answer_of(line: str) -> Any:
    return answer(0, **{key: json.loads(line)[key] for key in ("text", "id")})


def test_the_result_as_json_without_the_page(cli: Cli, tmp_path: Path, visits: Any) -> None:
    file = save_answers(tmp_path / "answers.jsonl")
    visits(judge_all)
    cli("judge", file)
    result = cli("judge", file, "--result", "--json", "--quiet")
    facts = json.loads(result.out)
    assert (result.status, "Judge here" in result.err) == (0, False)
    assert (facts["counts"]["votes"], facts["counts"]["pairs"]) == (4, 4)
    assert facts["file"] == str(tmp_path / "judged-pairs" / "pairs.jsonl")
    assert facts["check"]["pairs"] == {"all": 4}


def test_a_stage_of_a_loop_advises_no_command_of_its_own(
    cli: Cli, tmp_path: Path, visits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop trains next, and says how to go on with itself."""
    file = save_answers(tmp_path / "answers.jsonl")
    visits(judge_all)
    advised = cli("judge", file).out.split("Train on them: ")[1].splitlines()[0]
    assert advised.startswith("orpo-mlx train --model")
    assert "--epochs 3 --batch-size 4 --learning-rate 2e-4 --output adapters/NAME" in advised
    monkeypatch.setenv("ORPO_MLX_PARENT", str(os.getppid()))
    assert "Train on them" not in cli("judge", file, "--result").out


def test_a_verdict_is_begun_with_what_it_can_show(cli: Cli, tmp_path: Path, visits: Any) -> None:
    file = save_answers(tmp_path / "answers.jsonl", ("one", "others"), prompts=8)
    visits(judge_all)
    result = cli("judge", file, "--for", "verdict", "--json")
    facts = json.loads(result.out)
    assert "8 prompts, if all are decided, would show a preference of" in result.err
    assert (facts["prompts"], facts["decided"], facts["missing"]) == (8, 8, 0)


def test_ctrl_c_keeps_the_votes_and_the_same_command_goes_on(
    cli: Cli, tmp_path: Path, visits: Any
) -> None:
    file = save_answers(tmp_path / "answers.jsonl")
    folder = tmp_path / "judged-pairs"

    def vote_once(visitor: Visitor) -> None:
        visitor.vote(visitor.state()["item"]["id"], "second")
        visitor.client.close()
        _thread.interrupt_main(signal.SIGINT)

    visits(vote_once)
    # A process that others started may ignore SIGINT, as a worker of the tests does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = cli("judge", file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.status, result.out) == (130, "")
    assert f"every vote is kept. Go on with: orpo-mlx judge {folder}" in result.err
    visits(judge_all)
    assert "4 pairs from 4 votes" in cli("judge", folder).out
    choices = [vote.choice for vote in load_votes(folder / "votes.jsonl")]
    assert choices == ["second", "first", "first", "first"]


def test_in_a_network_it_is_said_that_others_can_read_along(
    cli: Cli, tmp_path: Path, visits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "own_addresses", lambda: ["192.168.1.5"])
    visits(judge_all)
    result = cli("judge", save_answers(tmp_path / "answers.jsonl"), "--host", "0.0.0.0", "--quiet")
    assert re.search(r"^In the network: http://192\.168\.1\.5:\d+/\?token=", result.err, re.M)
    assert "Warning: this is plain http. Whoever has the link" in result.err


@pytest.mark.parametrize(
    ("environment", "terminal", "opened"),
    [({"DISPLAY": ":0"}, True, 1), ({"DISPLAY": ":0"}, False, 0), ({}, True, 0),
     ({"DISPLAY": ":0", "SSH_CONNECTION": "1.2.3.4"}, True, 0)],
)  # fmt: skip
def test_a_browser_is_opened_only_where_somebody_sits_at_a_screen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, opened: int
) -> None:
    from orpo_mlx.cli.judge import _show

    links = list[str]()
    monkeypatch.setattr("webbrowser.open", links.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    _show(serve.Links("http://127.0.0.1:1/?token=t", []), opens=True)
    assert len(links) == opened
    _show(serve.Links("http://127.0.0.1:1/?token=t", []), opens=False)
    assert len(links) == opened


def test_what_is_missing_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_answers(tmp_path / "answers.jsonl")
    result = cli("judge", file, "--result")
    assert (result.status, "nothing was judged there yet" in result.err) == (1, True)
    assert (
        "Error: --host 192.0.2.1: the page cannot" in cli("judge", file, "--host", "192.0.2.1").err
    )
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert pip_install("judge") in cli("judge", file).err
