"""Ends of what never ends: the only clocks of the tests, so wide that load cannot reach them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

HANG_SECONDS = 300  # of wall time for what takes hundredths of a second to a few seconds
CPU_SECONDS = 20.0  # of this process, for one damaged file: 50 times the dearest of thousands, 0.3


class HangError(BaseException):
    """No Exception, so that nothing takes it for an error of a file."""


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
