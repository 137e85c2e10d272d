"""A stage's command in a process of its own: signals reach it, and it outlives no loop."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_mlx.loops.child import how_it_ended, run_command
from orpo_mlx.search import child
from tests.alarm import HANG_SECONDS, no_hang

pytestmark = pytest.mark.touchy

# A stand-in for Python: interrupts or kills its parent or itself as its argument wants, and writes
# down what it was given and what reached it.
STAND_IN = """#!/bin/sh
echo "$2 $3 $4 of $ORPO_MLX_PARENT"
trap 'echo interrupted >> log; exit 1' INT
trap 'echo terminated >> log; exit 130' TERM
case "$4" in
fails) exit 1;;
dies) kill -KILL $$;;
interrupts) kill -INT $PPID;;
terminates) kill -TERM $PPID;;
completes) trap '' INT; kill -INT $PPID; exit 0;;
*) exit 0;;
esac
while true; do sleep 0.01; done
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    script = tmp_path / "python"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child.sys, "executable", str(script))
    with no_hang():
        yield


@pytest.mark.parametrize(
    ("end", "status", "how"),
    [
        ("works", 0, "ended with 0"),
        ("fails", 1, "ended with 1"),
        ("dies", -9, "was ended by SIGKILL"),
    ],
)
def test_a_stage_ends_with_its_own_status(
    end: str, status: int, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command([end]) == status
    assert how_it_ended(status) == how
    # Standard output is the loop's own.
    assert capfd.readouterr() == ("", f"-m orpo_mlx {end} of {os.getpid()}\n")


@pytest.mark.parametrize(
    ("end", "reached"), [("interrupts", "interrupted\n"), ("terminates", "terminated\n")]
)
def test_a_signal_is_passed_on_and_the_stage_is_waited_for(end: str, reached: str) -> None:
    assert run_command([end]) == 130
    assert Path("log").read_text() == reached


def test_a_stage_that_completes_in_spite_of_a_signal_counts_as_interrupted() -> None:
    assert run_command(["completes"]) == 130


PARENT = """
import os, subprocess, sys
from orpo_mlx.search.child import start_command
sys.executable = sys.argv[1]
start_command([], stdout=1)
os._exit(0)
"""
CHILD = """#!{python}
import os, sys, time
from orpo_mlx.search import child
from orpo_mlx.search.child import interrupted_with_parent
from orpo_mlx.supervisor.signals import interrupting
child.PARENT_SECONDS = 0.01
try:
    with interrupting(), interrupted_with_parent():
        print("ORPO_MLX_PARENT" in os.environ, flush=True)
        while True:
            time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_command_is_interrupted_once_its_parent_is_gone(tmp_path: Path) -> None:
    """However that ended: here without a word to its child."""
    script = tmp_path / "child"
    script.write_text(CHILD.format(python=REAL_PYTHON))
    script.chmod(0o755)
    done = subprocess.run(
        [REAL_PYTHON, "-c", PARENT, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    assert done.stdout == "False\ninterrupted\n"


def test_a_command_that_nothing_started_for_itself_runs_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one whose parent lives."""
    for parent in (None, str(os.getppid())):
        if parent:
            monkeypatch.setenv("ORPO_MLX_PARENT", parent)
        monkeypatch.setattr(child, "PARENT_SECONDS", 0.001)
        before = signal.getsignal(signal.SIGINT)
        with child.interrupted_with_parent():
            subprocess.run(["sleep", "0.02"], check=True)
        assert signal.getsignal(signal.SIGINT) is before
        assert "ORPO_MLX_PARENT" not in os.environ


REAL_PYTHON = sys.executable
