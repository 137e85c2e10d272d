"""What the death of a training child was. Pure: its wait status, what it printed, what it sent."""

import signal
from typing import NamedTuple

from orpo_mlx.supervisor.device_errors import is_out_of_memory

DEVICE_STATUS = 75  # sysexits.h: EX_TEMPFAIL
RETRIED = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
ASKED_FOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Death(NamedTuple):
    """The end of a child that left no result."""

    text: str  # continues "The training process"
    retried: bool = True
    no_memory: bool = False  # it printed or sent that
    # It may have been the system that ended it for its memory, without a word.
    bare_signal: int = 0
    asked_for: bool = False  # somebody ended it by the signal for that


def classify_death(
    status: int,  # negative: the signal that ended it
    words: str,  # what it printed last, and the error that it sent
    *,
    hung_seconds: float | None = None,  # it was ended for its silence
) -> Death:
    """What it was, and whether a new process is worth a try."""
    no_memory = is_out_of_memory(words)
    if hung_seconds is not None:
        return Death(f"reported nothing for {_duration(hung_seconds)} and was ended")
    if status in (-s for s in ASKED_FOR):
        return Death(f"was ended by {_name(-status)}", retried=False, asked_for=True)
    if status == 128 + signal.SIGINT:
        return Death("was interrupted", retried=False, asked_for=True)
    if status < 0:
        retried = -status in RETRIED
        bare = -status if retried and not no_memory else 0
        return Death(f"was ended by {_name(-status)}", retried, retried and no_memory, bare)
    if status == DEVICE_STATUS:
        what = "had too little memory" if no_memory else "met a failure of the device"
        return Death(what, no_memory=no_memory)
    return Death(f"ended with status {status}", retried=False)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
