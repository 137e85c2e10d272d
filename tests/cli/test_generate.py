import io
import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.model.base import load_base
from orpo_mlx.training.samples.answer import Answer
from tests import tiny
from tests.cli.conftest import Cli
from tests.data.tokens.lossy import LOSSY, encoder_of


def test_generate_prints_the_answer_and_says_that_it_was_cut(cli: Cli, llama: Path) -> None:
    result = cli("generate", "--model", llama, "--prompt", "my card", "--max-tokens", 5)
    assert result.status == 0
    assert result.out.endswith("\n") and len(result.out) > 1
    assert result.err == "(cut at --max-tokens 5)\n"


def test_the_prompt_comes_from_standard_input_too(
    cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", "--model", llama, "--max-tokens", 5, "--quiet")
    given = cli(*arguments, "--prompt", "my card")
    monkeypatch.setattr(sys, "stdin", io.StringIO("my card"))
    read = cli(*arguments, "--prompt", "-")
    assert (read.out, read.err) == (given.out, "")


def test_an_answer_reaches_the_terminal_without_control_characters(
    cli: Cli, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "a\x1b]0;pwned\x07\x1b[2J\tb\n"
    monkeypatch.setattr(
        "orpo_mlx.review.answers.generate.stream_answer",
        lambda *given, **more: iter([Answer(evil, evil, 5, True)]),
    )
    arguments = ("generate", "--model", llama, "--prompt", "my card")
    assert cli(*arguments).out == "a\\x1b]0;pwned\\x07\\x1b[2J\tb\n\n"
    assert json.loads(cli(*arguments, "--json").out)["text"] == evil


def test_json_is_one_object_with_the_streamed_text(cli: Cli, llama: Path) -> None:
    arguments = ("generate", "--model", llama, "--prompt", "my card", "--max-tokens", 5)
    answer = json.loads(cli(*arguments, "--json").out)
    assert answer["text"] + "\n" == cli(*arguments).out
    assert (answer["tokens"], answer["ended"]) == (5, False)


@pytest.mark.parametrize(
    ("prompt", "system", "named"),
    [
        ("hi <|im_end|> there", None, ["--prompt holds <|im_end|>"]),
        ("hi", "be <|im_start|>brief<|im_end|>", ["<|im_end|>", "<|im_start|>"]),
        ("a < b | c > d", "im_end", []),
    ],
)
def test_control_tokens_that_are_typed_are_reported(
    cli: Cli, llama: Path, prompt: str, system: str | None, named: list[str]
) -> None:
    more = ["--system", system] if system else []
    arguments = ["generate", "--model", llama, "--max-tokens", 1, "--prompt", prompt, *more]
    result = cli(*arguments)
    warnings = [line for line in result.err.splitlines() if "control token" in line]
    assert len(warnings) == len(named)
    for line, name in zip(warnings, named, strict=True):
        assert line.startswith("Warning: --") and name in line
    assert "control token" not in cli(*arguments, "--quiet").err


def test_an_answer_ends_at_every_end_token_of_its_model(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    base = load_base(str(llama))
    ids = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "my card"}], add_generation_prompt=True
    )
    likeliest = int(base.model(mx.array([ids]))[0, -1].argmax())
    shutil.copytree(llama, tmp_path / "base")
    config = json.loads((llama / "config.json").read_text())
    ends = [config["eos_token_id"], likeliest]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    arguments = ("--prompt", "my card", "--max-tokens", 5, "--json")
    assert not json.loads(cli("generate", "--model", llama, *arguments).out)["ended"]
    answer = json.loads(cli("generate", "--model", "base", *arguments).out)
    assert answer == {"text": "", "tokens": 0, "ended": True}


def test_the_same_seed_gives_the_same_answer(cli: Cli, llama: Path) -> None:
    arguments = ("generate", "--model", llama, "--prompt", "card", "--max-tokens", 8, "--json",
                 "--temperature", 1)  # fmt: skip
    first, again, other = (cli(*arguments, "--seed", seed).out for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("prompt", "stdin", "message"),
    [
        ("", b"", "--prompt: must not be empty."),
        (" \n", b"", "--prompt: must not be empty."),
        ("\udcff", b"", "--prompt: not UTF-8 text."),
        ("-", b"", "--prompt - (standard input): must not be empty."),
        ("-", b"\xff", "--prompt - (standard input): not UTF-8 text."),
    ],
)
def test_a_prompt_that_is_not_text_is_one_message(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompt: str, stdin: bytes, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    result = cli("generate", "--model", "none", "--prompt", prompt)
    assert (result.status, result.out, result.err) == (1, "", f"Error: {message}\n")


def test_typed_text_that_the_tokenizer_cannot_write_is_reported(cli: Cli, tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    encoder_of(LOSSY["unigram"]()).tokenizer.save_pretrained(str(base))
    arguments = ["generate", "--model", base, "--max-tokens", 1, "--prompt", "the bill 好"]
    result = cli(*arguments, "--system", "hello")
    assert result.status == 0
    assert [line for line in result.err.splitlines() if "tokens for" in line] == [
        "Warning: --prompt: the tokenizer has no tokens for 1 of 8 characters ('好')."
    ]
