"""A stage's command in a process of its own, which is asked to save and end with the loop."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from orpo_mlx.search.child import start_command
from orpo_mlx.supervisor.signals import received_signals

INTERRUPTED = 130
_STDERR = 2  # standard output is the loop's own, perhaps --json


def run_command(arguments: Sequence[str]) -> int:
    """The exit status of `orpo-mlx ARGUMENTS`, whose whole output goes to standard error.

    Signals are passed on to it: then the status is 130, whatever it came to.
    """
    with received_signals() as signals:
        # Its standard input is only looked at: a browser is opened where that is a terminal.
        process = start_command(arguments, stdin=None, stdout=_STDERR)
        signals.attach(_Stage(process))
        status = process.wait()
        signals.attach(None)
    return INTERRUPTED if signals.received else status


def how_it_ended(status: int) -> str:
    """A status for people: a signal by its name."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


class _Stage:
    """A process that signals are passed on to."""

    def __init__(self, process: "subprocess.Popen[bytes]"):
        self._process = process

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def send_to_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(self._process.pid, number)
