"""One child from its start to its end: what it reports, and whether it is hung."""

import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.supervisor.child import COMMAND, Child, start_child
from orpo_mlx.supervisor.event_lines import Failure, Message, Result, parse_message
from orpo_mlx.supervisor.signals import Signals
from orpo_mlx.supervisor.silence import Silence

TICK_SECONDS = 0.5
KILL_SECONDS, KILL_LOOKS = 60.0, 1200  # a killed process ends at once
_NEVER_ENDS = (
    "The training process {pid} does not end, not even by SIGKILL: its work hangs in the system, "
    "most likely on the GPU. Restart the Mac, then continue with --resume."
)


class ChildStuckError(OrpoError):
    """The system itself cannot end a process."""


class ChildEnd(NamedTuple):
    """How a child ended; `words` is what it printed last."""

    status: int
    result: Result | None
    failure: str
    words: str
    hung_seconds: float | None


def run_child(
    config: TrainConfig,
    receive: Callable[[Message], None],
    signals: Signals,
    *,
    lock: int = -1,
    command: Sequence[str] = COMMAND,
    printed: Callable[[str], None] = lambda text: None,
) -> ChildEnd:
    """Start a child, hand on what it reports and what it prints, and return its end.

    Raises OrpoError where it cannot be ended. However this function is left, the child is asked to
    save and end, and waited for.
    """
    child = start_child(config, lock, command)
    watcher = _Watcher(child, receive, printed, 60 * config.hang_minutes)
    signals.attach(child)
    try:
        watcher.watch()
    except ChildStuckError:
        raise
    except BaseException:
        child.send(signal.SIGTERM)
        watcher.receive = lambda message: None
        watcher.watch()
        raise
    finally:
        signals.attach(None)
        child.close()
    return watcher.end


class _Watcher:
    """What is known of one child while it runs."""

    def __init__(
        self,
        child: Child,
        receive: Callable[[Message], None],
        printed: Callable[[str], None],
        hang_seconds: float,
    ):
        self.child, self.receive, self._printed = child, receive, printed
        self._silence = Silence(hang_seconds, time.monotonic())
        self._result: Result | None = None
        self._failure = ""
        self._hung_seconds: float | None = None
        self._words = ""

    def watch(self) -> None:
        """Until the child has ended, by itself or for its silence."""
        while self.child.status is None:
            self._read(TICK_SECONDS)
            if self.child.at_end:  # it is about to end
                time.sleep(0.01)
            self._silence.tick(time.monotonic(), stopped=self.child.stopped)
            if text := self.child.new_output():
                self._silence.heard(time.monotonic())
                self._printed(text)
            self.child.look()
            if self._silence.too_long and self.child.status is None:
                self._end_for_silence()
        while self._read(0):
            pass
        self._words = self.child.last_words()

    @property
    def end(self) -> ChildEnd:
        assert self.child.status is not None
        return ChildEnd(
            self.child.status, self._result, self._failure, self._words, self._hung_seconds
        )

    def _read(self, seconds: float) -> bool:
        """Hand on what has come; whether anything has."""
        lines = self.child.lines(seconds)
        if lines:
            self._silence.heard(time.monotonic())
        for line in lines or ():
            match parse_message(line):
                case None:
                    pass
                case Result() as result:
                    self._result = result
                    self.receive(result)
                case Failure(text):
                    self._failure = text
                case message:
                    self.receive(message)
        return lines is not None

    def _end_for_silence(self) -> None:
        self._hung_seconds = self._silence.limit_seconds
        self.child.send_to_group(signal.SIGKILL)
        for _ in range(KILL_LOOKS):
            time.sleep(KILL_SECONDS / KILL_LOOKS)
            self._read(0)
            self.child.look()
            if self.child.status is not None:
                return
        raise ChildStuckError(_NEVER_ENDS.format(pid=self.child.pid))
