"""Commands in processes of their own: a run that dies is a failed trial. Imports no mlx."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orpo_mlx.events import Callback, Event, StopRun
from orpo_mlx.supervisor.signals import interrupting

PARENT = "ORPO_MLX_PARENT"  # whose process id: a run that it started ends with it
POLL_SECONDS = 0.2
PARENT_SECONDS = 1.0  # between looks whether it is still there
LOG_BYTES = 20_000  # of the end of a log, in which the reason is looked for


def run_train(arguments: Sequence[str], log: Path, should_end: Callable[[], bool]) -> int:
    """The status of `orpo-mlx train ARGUMENTS`, whose output goes to a file.

    It is asked to save and end once `should_end` is true, and when the caller is interrupted.
    """
    with log.open("ab") as stream, interrupting():
        child = start_command(["train", *arguments], stdout=stream, stderr=subprocess.STDOUT)
        try:
            return _watch(child, should_end)
        except BaseException:
            _end(child)
            raise


def start_command(
    arguments: Sequence[str],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: IO[bytes] | int,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `orpo-mlx ARGUMENTS`; what is None is the caller's own."""
    # A session of its own: Ctrl-C reaches the caller alone, which passes it on.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "orpo_mlx", *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,
    )


def has_parent() -> bool:
    """Whether another command started this one, and goes on with what it comes to."""
    return PARENT in os.environ


def end_with_parent() -> list[Callback]:
    """In a run that `start_command` started: a callback that ends it once its parent is gone."""
    parent = os.environ.pop(PARENT, "")

    def look(event: Event) -> None:
        if os.getppid() != int(parent):
            raise StopRun("the process that started it has ended")

    return [look] if parent else []


@contextmanager
def interrupted_with_parent() -> Iterator[None]:
    """In a process that `start_command` started: SIGTERM for it once its parent is gone."""
    parent, over = os.environ.pop(PARENT, ""), threading.Event()

    def look() -> None:
        while not over.wait(PARENT_SECONDS):
            if os.getppid() != int(parent):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if parent:
        threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


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
