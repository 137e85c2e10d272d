import json
import signal
import subprocess
import sys

import pytest

from orpo_mlx.cli.main import COMMANDS, run
from tests.cli.conftest import Cli

HEAVY = {"mlx", "mlx_lm", "numpy", "transformers", "datasets", "torch", "pyarrow", "tokenizers"}
LOADED = """
import json, sys
from orpo_mlx.cli.main import run
status = run(sys.argv[1:])
config = sys.modules.get("orpo_mlx.config.train")
kinds = [k for k in vars(config).values() if isinstance(k, type)] if config else []
built = [k.__name__ for k in kinds if getattr(k, "__pydantic_complete__", False)]
print("LOADED" + json.dumps([status, list(sys.modules), built]))
"""


@pytest.mark.touchy
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_no_heavy_module_no_other_command_and_builds_no_options(
    command: str | None,
) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True
    )
    text, _, loaded = done.stdout.partition("LOADED")
    status, modules, built = json.loads(loaded)
    assert status == 0
    assert text.startswith(f"Usage: orpo-mlx {command or '[OPTIONS]'}")
    assert not HEAVY & {name.split(".")[0] for name in modules}
    assert not {f"orpo_mlx.cli.{c}" for c in COMMANDS if c != command} & set(modules)
    assert built == []


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
        "demo", "train", "evaluate", "generate", "data",
        "convert", "fuse", "export", "import", "push", "pull", "doctor",
    ]  # fmt: skip


@pytest.mark.touchy
def test_a_user_error_is_one_message_and_status_1() -> None:
    arguments = ["-m", "orpo_mlx.cli.main", "train", "--model", "m", "--data", "d"]
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
