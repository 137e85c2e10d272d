"""Ends for what would never end: the only clocks of the tests, too wide for load to reach them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

HANG_SECONDS = 300  # of wall time for what takes hundredths of a second to a few seconds
CPU_SECONDS = 20.0  # of this process, for one damaged file: 50 times the slowest of thousands, 0.3


class HangError(BaseException):
    """Not an Exception, so that nothing mistakes it for an error of a file."""


@contextmanager
def no_hang() -> Iterator[None]:
    """Break off a block that does not end; fail if it took the processor unreasonably long."""

    def late(*_: object) -> None:
        raise HangError(f"not done after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    started = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < CPU_SECONDS
