"""An end to what never ends: work in a block that takes too long is broken off."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_SECONDS = 60.0  # of wall time for what takes hundredths; other work may hold it up


class HangError(BaseException):
    """No Exception, so that nothing takes it for an error of a file."""


@contextmanager
def no_hang() -> Iterator[None]:
    def late(*_: object) -> None:
        raise HangError(f"not done after {LONGEST_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
