"""Steps that take much longer than usual because the system swaps."""

import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from orpo_mlx.events import Callback, Event, MicroBatchDone, Notice, PhaseTime, StepDone

TIMES_USUAL = 3
FEWEST, MOST = 5, 50  # steps from which the usual time is known
_VMSTAT = Path("/proc/vmstat")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class SlowSteps:
    """A callback that reports a step of over three times the usual time if swap has grown."""

    def __init__(
        self,
        report: Callback,
        swapped: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._report, self._swapped, self._clock = report, swapped, clock
        self._times = deque[float](maxlen=MOST)
        self._swap = swapped()
        self._since: float | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, MicroBatchDone | Notice | PhaseTime):
            return
        now = self._clock()
        if isinstance(event, StepDone) and self._since is not None:
            self._look(event.step, now - self._since)
        self._since = now  # a validation or a checkpoint is not part of a step

    def _look(self, step: int, seconds: float) -> None:
        usual = median(self._times) if len(self._times) >= FEWEST else None
        self._times.append(seconds)
        if usual is None or self._swap is None or seconds <= TIMES_USUAL * usual:
            return
        swap = self._swapped()
        if swap is not None and swap > self._swap:
            text = (
                f"Step {step} took {seconds:.1f} s, {seconds / usual:.0f} times as long as usual, "
                f"while {(swap - self._swap) / 1e9:.2f} GB went to swap: memory is short. Close "
                "other programs, or stop and continue with --resume --grad-checkpoint or a "
                "smaller --micro-batch-size."
            )
            self._report(Notice(text, warning=True))
            self._swap = swap


def swapped_bytes(platform: str) -> int | None:
    """What the system has in swap (macOS) or has ever moved there (Linux); None elsewhere."""
    if platform == "darwin":
        return _swap_usage()
    with suppress(OSError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, pages = line.partition(" ")
            if name == "pswpout":
                return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return None


def _swap_usage() -> int | None:
    """`used` of sysctl's line: total = 2048.00M  used = 1012.25M  free = 1035.75M  (encrypted)"""
    command = ["sysctl", "-n", "vm.swapusage"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    used = re.search(r"used = ([\d.]+)([KMG])", text)
    return round(float(used[1]) * _UNITS[used[2]]) if used else None
