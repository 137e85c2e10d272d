"""When a child that reports nothing counts as hung. Reads no clock: the time is given."""

# Longer gaps between two looks are the machine's sleep, or this process was stopped.
LONGEST_TICK = 5.0  # seconds
TIMES_LONGEST = 10


class Silence:
    """Adds up the seconds without a report while child, parent and machine are awake."""

    def __init__(self, hang_seconds: float, now: float):
        self._hang_seconds = hang_seconds
        self._last = now
        self._quiet = self._longest = 0.0

    def tick(self, now: float, *, stopped: bool = False) -> None:
        """Look at the clock; time in which the child is stopped does not count."""
        if not stopped:
            self._quiet += min(now - self._last, LONGEST_TICK)
        self._last = now

    def heard(self, now: float) -> None:
        """The child reported something."""
        self.tick(now)
        self._longest = max(self._longest, self._quiet)
        self._quiet = 0.0

    @property
    def limit_seconds(self) -> float:
        """The longer of --hang-minutes and ten times the longest gap so far."""
        return max(self._hang_seconds, TIMES_LONGEST * self._longest)

    @property
    def too_long(self) -> bool:
        """Whether the child counts as hung."""
        return self._quiet > self.limit_seconds
