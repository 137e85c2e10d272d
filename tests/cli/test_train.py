import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.cli.progress import Display
from orpo_mlx.cli.train import ask_if_exists
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from tests import tiny
from tests.cli.conftest import Cli

SMALL = ("--batch-size", 4, "--rank", 2)


@pytest.fixture
def arguments(llama: Path, pairs_file: Path) -> list[object]:
    return ["train", "--model", llama, "--data", pairs_file, "--output", "run", *SMALL,
            "--valid-fraction", 0]  # fmt: skip


def test_train_writes_a_run_and_tells_what_it_does(
    cli: Cli, arguments: list[object], tmp_path: Path
) -> None:
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 4, start=16)
    result = cli(*arguments, "--valid-data", valid, "--steps", 3)
    assert (result.status, result.out) == (0, "")
    lines = result.err.splitlines()
    need = lines.pop(3)
    assert need.startswith("A checkpoint takes ")
    assert "the last 3 and the best are kept (--keep-checkpoints): the run takes up to " in need
    start_up = lines.pop(5)
    parts = [part.split()[0] for part in start_up.removeprefix("Start-up: ").split(", ")]
    assert parts == ["imports", "model", "data", "order", "self-check", "validation"]
    pairs = tmp_path / "pairs.jsonl"
    assert lines[:3] == [
        f"{pairs}: read as: texts, explicit prompt.",
        f"{valid}: read as: texts, explicit prompt.",
        "Micro-batches of 4 pairs; 1% of the computed positions are padding.",
    ]
    lines = lines[3:]
    assert lines[0].startswith("Training ") and lines[0].endswith(", 3 steps.")
    assert lines[1].startswith("step     0  held-out: loss ")
    assert lines[2].startswith("step     3  loss ") and lines[2].endswith("0:00 left")
    assert lines[3].startswith("step     3  held-out: loss ")
    assert lines[4] == "step     3  saved run/checkpoints/step-0000003"
    assert lines[5].startswith(
        "The adapter is that of step 3, the last and the best by eval_loss: "
    )
    assert lines[6] == "Done in 0:00: run"
    assert {"adapters.safetensors", "adapter_config.json", "config.yaml", "metrics.jsonl"} <= {
        file.name for file in Path("run").iterdir()
    }


def test_json_is_one_object_on_stdout_and_all_else_on_stderr(
    cli: Cli, arguments: list[object]
) -> None:
    result = cli(*arguments, "--steps", 1, "--json")
    assert result.out.count("\n") == 1
    assert json.loads(result.out) == {
        "output": "run", "step": 1, "stopped": False, "adapter_step": 1, "early_stopped": False,
    }  # fmt: skip
    assert "Done in" in result.err


def test_quiet_shows_the_end_only(cli: Cli, arguments: list[object]) -> None:
    result = cli(*arguments, "--steps", 1, "--quiet")
    assert result.err == "Done in 0:00: run\n"


@pytest.mark.touchy
def test_ctrl_c_saves_and_says_how_to_go_on(
    cli: Cli, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Display._show_step

    def press(self: Display, step: int, metrics: dict[str, float]) -> None:
        show(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "_show_step", press)
    stopped = cli(*arguments, "--steps", 4)
    assert stopped.status == 130
    assert stopped.err.splitlines()[-1] == (
        "Stopped after step 2; everything is saved. "
        "Continue with: orpo-mlx train --resume --output run"
    )
    monkeypatch.setattr(Display, "_show_step", show)
    resumed = cli("train", "--resume", "--output", "run")
    assert resumed.status == 0, resumed.err
    assert "4 steps, from step 2." in resumed.err
    steps = [json.loads(row)["step"] for row in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["replace", "resume"])
def test_an_existing_run_is_asked_about_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(sys, "stdin", Terminal(f"maybe\n{answer}\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    config = TrainConfig(model="base", data=["pairs.jsonl"], output=tmp_path)
    asked = ask_if_exists(config)
    assert (asked.overwrite, asked.resume) == (answer == "replace", answer == "resume")
    assert f"{tmp_path} exists. Replace it, resume it, or stop?" in sys.stderr.getvalue()


def test_an_existing_run_is_left_alone_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(OrpoError, match="is left as it was"):
        ask_if_exists(TrainConfig(model="base", data=["pairs.jsonl"], output=tmp_path))


def test_an_existing_run_is_an_error_elsewhere(cli: Cli, arguments: list[object]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("rank: 2\n")
    result = cli(*arguments)
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "Error: run exists. Continue it with --resume, replace it with --overwrite, or name "
        "another folder with --output.\n"
    )


def test_resume_takes_the_file_over_the_runs_own_settings(cli: Cli) -> None:
    Path("run").mkdir()
    stored = {"model": "base", "data": ["pairs.jsonl"], "output": "run", "rank": 2}
    Path("run/config.yaml").write_text(yaml.safe_dump(stored))
    Path("new.yaml").write_text("resume: true\noutput: run\nrank: 4\n")
    assert cli("train", "--config", "new.yaml").err == (
        "Error: --resume goes on with the run's own settings:\n  rank: was 2, now 4\n"
        "Leave them out.\n"
    )


def test_resume_needs_its_folder(cli: Cli) -> None:
    assert cli("train", "--resume").err == (
        "Error: --resume: name the run's folder with --output.\n"
    )


def bad_inputs() -> dict[str, dict[str, Any]]:
    """What is put into the folder, the flags that name it, and what the message must hold."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    long = json.dumps(row | {"prompt": "a" * 10_000_000}).encode()
    return {
        "missing file": {"data": "none.jsonl", "says": "--data none.jsonl: no such file"},
        "empty file": {"content": b"", "says": "the file is empty"},
        "no splits": {"data": "folder", "says": "the folder has no train.jsonl"},
        "no rejected": {
            "content": b'{"prompt": "a", "chosen": "b"}',
            "says": 'bad.jsonl:1: column "rejected" is missing',
        },
        "same answers": {
            "content": json.dumps(row | {"rejected": "b"}).encode(),
            "says": 'bad.jsonl:1: "chosen" and "rejected" are the same',
        },
        "10 MB line": {"content": long, "says": "bad.jsonl:1: the line is"},
        "not UTF-8": {"content": b'{"prompt": "\xff"}', "says": "bad.jsonl:1: not UTF-8"},
        "no model": {
            "flags": ("--model", "./none/x/y"),
            "says": "--model ./none/x/y: no such fold",
        },
        "no weights": {"flags": ("--model", "folder"), "says": "no weights"},
        "unwritable": {"flags": ("--output", "/proc/run"), "says": "/proc/run cannot be written"},
        "a file": {"flags": ("--output", "file/run"), "says": "file/run cannot be written"},
        "no template": {
            "flags": ("--chat-template", "none.jinja"),
            "says": "none.jinja: cannot be",
        },
        "no module": {"flags": ("--target-modules", "none"), "says": "--target-modules none"},
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input_is_one_message_and_nothing_is_written(
    cli: Cli, arguments: list[object], name: str
) -> None:
    bad = bad_inputs()[name]
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}")
    Path("file").touch()
    flags = list(bad.get("flags", ()))
    if "content" in bad:
        Path("bad.jsonl").write_bytes(bad["content"])
    if "content" in bad or "data" in bad:
        arguments[arguments.index("--data") + 1] = bad.get("data", "bad.jsonl")
    result = cli(*arguments, *flags)
    assert (result.status, result.out) == (1, "")
    assert result.err.count("Error: ") == 1
    assert bad["says"] in result.err
    assert "Traceback" not in result.err
    assert not Path("run").exists()


def test_the_rules_of_a_run_are_not_an_option(
    cli: Cli, arguments: list[object], tmp_path: Path
) -> None:
    assert cli(*arguments, "--steps", 1).status == 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert stored.pop("rules") == 4
    # Whatever a file says of them, a new run follows the newest.
    for rules in (1, 2, 3, 4, 99):
        Path("again.yaml").write_text(yaml.safe_dump(stored | {"rules": rules}))
        result = cli("train", "--config", "again.yaml", "--overwrite")
        assert result.status == 0, result.err
        assert yaml.safe_load(Path("run/config.yaml").read_text())["rules"] == 4
    refused = cli(*arguments, "--rules", 1)
    assert (refused.status, refused.out) == (1, "")
    assert "--rules: no such option." in refused.err
    assert "rules" not in cli("train", "--help").out


@pytest.mark.parametrize("closed", ["stdin", "stderr"])
def test_nobody_is_asked_about_a_run_folder_where_nobody_can_answer(
    cli: Cli, llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    closed: str,
) -> None:  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 1\n")
    config = TrainConfig(model=llama, data=pairs_file, output=tmp_path / "run")
    monkeypatch.setattr(sys, closed, None)  # as where a daemon starts it
    assert ask_if_exists(config) == config


@pytest.mark.touchy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_load_ends_as_ctrl_c_does(
    cli: Cli, arguments: list[object], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that was made for the lock is gone, too."""
    monkeypatch.setattr("orpo_mlx.loading.open_base", lambda *_: signal.raise_signal(number))
    result = cli(*arguments)
    assert (result.status, result.out) == (130, "")
    assert result.err.endswith("Stopped.\n")
    assert not Path("run").exists()
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.touchy
def test_sigterm_while_the_last_files_are_written_loses_nothing(
    cli: Cli, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill = lambda *_, **__: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        patch.setattr("orpo_mlx.training.loop.finish", kill)
        assert cli(*arguments, "--steps", 1).status == 130
    state = json.loads(Path("run/state.json").read_text())
    assert (state["state"], state["reason"], state["step"]) == ("interrupted", "SIGTERM", 1)
    assert cli("train", "--resume", "--output", "run").status == 0
    assert Path("run/adapters.safetensors").is_file()
