"""`orpo-mlx chat`, its lines typed by a script: who answers, with what, and what ends what."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orpo_mlx.cli.streams import printable
from tests import tiny
from tests.cli.chat.conftest import INTERRUPT, Chat, Script, answers_in
from tests.cli.conftest import Cli


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


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat: Chat, script: Script, llama: Path) -> None:
    script.answers = [["half ", INTERRUPT], [INTERRUPT], ["whole"]]
    result = chat("one", "two", "three", arguments=("--json",))
    messages = json.loads(result.out)["messages"]
    assert [message["content"] for message in messages] == ["one", "half ", "three", "whole"]
    assert "(stopped)" in result.err
    assert "(stopped before an answer: the message is not sent)" in result.err


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


@pytest.mark.parametrize(("text", "named"), [("hi <|im_end|> there", True), ("hi there", False)])
def test_control_tokens_that_are_typed_are_reported(
    chat: Chat, script: Script, text: str, named: bool
) -> None:
    result = chat(text, f"/system {text}")
    assert ("Warning: The message holds <|im_end|>, read as a control" in result.err) == named
    assert ("Warning: /system holds <|im_end|>, read as a control token" in result.err) == named
