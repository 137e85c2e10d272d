import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.main import COMMANDS, run
from tests.cli.conftest import Cli

HEAVY = {"mlx", "mlx_lm", "numpy", "transformers", "datasets", "torch", "pyarrow", "tokenizers"}
LOADED = """
import json, sys
from orpo_mlx.cli.main import run
status = run(sys.argv[1:])
config = [m for name, m in sys.modules.items() if name.startswith("orpo_mlx.config.")]
kinds = {k for m in config for k in vars(m).values() if hasattr(k, "__pydantic_complete__")}
built = [k.__name__ for k in kinds if k.__pydantic_complete__ and k.__name__ != "BaseModel"]
print("LOADED" + json.dumps([status, list(sys.modules), built, len(kinds)]))
"""
NO_OPTIONS = {"", "doctor", "data", "runs"}  # what declares none


@pytest.mark.touchy
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_no_heavy_module_no_other_command_and_builds_no_options(command: str) -> None:
    text, status, modules, built, declared = loaded(command)
    assert status == 0
    assert text.startswith(f"Usage: orpo-mlx {command or '[OPTIONS]'}")
    assert not HEAVY & {name.split(".")[0] for name in modules}
    own = command.split(" ")[0]
    assert not {f"orpo_mlx.cli.{c}" for c in COMMANDS if c != own} & set(modules)
    assert built == []
    assert bool(declared) == (command not in NO_OPTIONS)


def loaded(command: str, before: str = "") -> list[Any]:
    """The help of a command, its status, the modules loaded, the options built and declared."""
    done = subprocess.run(
        [sys.executable, "-c", before + LOADED, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    text, _, facts = done.stdout.partition("LOADED")
    return [text, *json.loads(facts)]


@pytest.mark.touchy
def test_what_help_must_not_load_or_build_is_seen() -> None:
    _, _, modules, built, _ = loaded(
        "train",
        "import numpy, orpo_mlx.cli.fuse; from orpo_mlx.config.data import DataCheckConfig; "
        "DataCheckConfig.model_rebuild()\n",
    )
    assert {"numpy", "orpo_mlx.cli.fuse"} <= set(modules)
    assert "DataCheckConfig" in built


EARLY = """
import os, sys
from orpo_mlx import backend
from orpo_mlx.cli.main import run

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            # The work itself has stdout sent to stderr.
            print("READY" if backend._prepared else "EARLY", file=sys.__stdout__, flush=True)
            os._exit(0)

sys.meta_path.insert(0, Finder())
run(sys.argv[1:])
"""
MODEL, OUT = ("--model", "none"), ("--output", "out")
COMPUTING = {
    "demo": ("--base-wheel", "none.whl", *OUT),
    "train": (*MODEL, "--data", "none.jsonl", *OUT),
    "evaluate": (*MODEL, "--data", "none.jsonl"),
    "generate": (*MODEL, "--prompt", "Hi"),
    "sample": (*MODEL, "--prompts", "none.txt"),
    "chat": MODEL,
    "convert": ("none", *OUT),
    "fuse": ("--adapter", "none", *OUT),
    "export": ("none", "--to", "peft", *OUT),
    "import": ("none", *MODEL, *OUT),
    "push": ("none", "--repo", "a/b", "--dry-run"),
}


@pytest.mark.touchy
@pytest.mark.parametrize("command", COMPUTING)
def test_the_machine_is_prepared_before_mlx_is_loaded(command: str, tmp_path: Path) -> None:
    """Loaded too early, MLX computes with its own BLAS, 20 to 40 times slower."""
    done = subprocess.run(
        [sys.executable, "-c", EARLY, command, *COMPUTING[command]],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["READY"], done.stderr


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    assert cli().out == cli("--help").out
    assert cli().status == 0
    for name, text in COMMANDS.items():
        assert f"  {name}" in cli().out, text


def test_an_unknown_command_is_answered_with_the_nearest(cli: Cli) -> None:
    result = cli("trian")
    assert (result.status, result.out) == (1, "")
    assert "Did you mean train?" in result.err
    assert f"All commands: {', '.join(COMMANDS)}. See: orpo-mlx --help" in result.err
    assert list(COMMANDS) == [
        "demo", "train", "lr-find", "sweep", "evaluate", "generate", "sample", "judge", "loop",
        "chat", "runs", "data", "convert", "fuse", "export", "import", "push", "pull", "doctor",
    ]  # fmt: skip


@pytest.mark.touchy
def test_a_user_error_is_one_message_and_status_1() -> None:
    arguments = ["-m", "orpo_mlx", "train", "--model", "m", "--data", "d"]
    done = subprocess.run(
        [sys.executable, *arguments, "--output", "o", "--batch-size", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "Error: --batch-size 0: must be at least 1.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--rank"], "Option '--rank' requires an argument."),
        (["train", "--rslora=1"], "Option '--rslora' does not take a value."),
    ],
)
def test_a_usage_error_is_one_message_and_status_1(
    cli: Cli, arguments: list[str], message: str
) -> None:
    result = cli(*arguments)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"Error: {message}")


@pytest.mark.touchy
def test_an_interrupt_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        signal.raise_signal(signal.SIGINT)  # to this thread, so at once
        return prompt

    monkeypatch.setattr("orpo_mlx.cli.generate._read_prompt", interrupted)
    # A process that others started may ignore SIGINT, as a worker of the tests does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = cli("generate", "--model", "m", "--prompt", "p")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.status, result.err.strip()) == (130, "Stopped.")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt: str) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr("orpo_mlx.cli.generate._read_prompt", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(["generate", "--model", "m", "--prompt", "p"])
