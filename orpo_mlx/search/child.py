"""`train` in a process of its own, so that one that dies is a failed trial. Imports no mlx."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from orpo_mlx.supervisor.signals import interrupting

POLL_SECONDS = 0.2
LOG_BYTES = 20_000  # of the end of a log, in which the reason is looked for


def run_train(arguments: Sequence[str], log: Path, should_end: Callable[[], bool]) -> int:
    """The status of `orpo-mlx train ARGUMENTS`, whose output goes to a file.

    It is asked to save and end once `should_end` is true, and when the caller is interrupted.
    """
    command = [sys.executable, "-P", "-m", "orpo_mlx", "train", *arguments]
    with log.open("ab") as stream, interrupting():
        # A session of its own: Ctrl-C reaches the caller alone, which passes it on.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return _watch(child, should_end)
        except BaseException:
            _end(child)
            raise


def _watch(child: subprocess.Popen[bytes], should_end: Callable[[], bool]) -> int:
    asked = False
    while True:
        try:
            return child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if not asked and should_end():
                child.terminate()
                asked = True


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let a run save and end; a second Ctrl-C ends it at once."""
    child.terminate()
    try:
        child.wait()
    except KeyboardInterrupt:
        child.kill()
        child.wait()


def why_it_ended(status: int, log: Path) -> str:
    """The error that a process printed last, or else its last line, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    with log.open("rb") as stream:
        stream.seek(max(log.stat().st_size - LOG_BYTES, 0))
        lines = stream.read().decode("utf-8", "replace").split("\n")
    filled = [line.strip() for line in lines if line.strip()]
    last = next((line for line in reversed(filled) if line.startswith("Error: ")), filled[-1:])
    return (last if isinstance(last, str) else "".join(last)).removeprefix("Error: ") or (
        f"status {status}"
    )
