"""Keeps a Mac awake for the time of a run, by the system's own programs."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orpo_mlx.events import Callback, Event, Notice, Started, StepDone

LONG_SECONDS = 20 * 60
FORETOLD_AFTER = 3  # steps: the first ones compile
ON_BATTERY = (
    "The Mac is kept awake for this run. On battery it may sleep all the same, and it sleeps when "
    "its lid is closed: leave it open and plugged in."
)


@contextmanager
def awake(report: Callback, *, platform: str) -> Iterator[None]:
    """On macOS, no sleep of the system before this process has ended; its display may sleep.

    Never with -d: a display that is on lets macOS end long work of the GPU.
    """
    if platform != "darwin":
        yield
        return
    process = _start("caffeinate", "-i", "-s", "-w", str(os.getpid()))
    if process is None:
        report(Notice("caffeinate cannot be started: this Mac may sleep.", warning=True))
        yield
        return
    report(Notice(ON_BATTERY))
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _start(*command: str) -> "subprocess.Popen[bytes] | None":
    """A program in a process group of its own, which Ctrl-C does not reach; None if it is not
    there."""
    nowhere = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, process_group=0
        )
    except OSError:
        return None


class DisplaySleep:
    """A callback that lets a Mac's display sleep at the first step, or names that for long runs."""

    def __init__(
        self,
        report: Callback,
        *,
        wanted: bool,  # --display-sleep
        platform: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._report, self._wanted, self._clock = report, wanted, clock
        self._over = platform != "darwin"
        self._first: tuple[int, float] | None = None  # a step, and when it was done
        self._steps = 0

    def __call__(self, event: Event) -> None:
        if self._over:
            return
        if isinstance(event, Started):
            self._steps = event.steps
        elif isinstance(event, StepDone) and self._wanted:
            self._over = True
            if process := _start("pmset", "displaysleepnow"):
                process.wait()
        elif isinstance(event, StepDone):
            self._foretell(event.step)

    def _foretell(self, step: int) -> None:
        """Name the option once if the run has long to go."""
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        elif step - self._first[0] >= FORETOLD_AFTER:
            self._over = True
            first, then = self._first
            left = (now - then) / (step - first) * (self._steps - step)
            if left > LONG_SECONDS:
                self._report(
                    Notice(
                        f"About {left / 3600:.1f} hours are left. With --display-sleep the display "
                        "sleeps meanwhile, and the GPU has nothing else to do."
                    )
                )
