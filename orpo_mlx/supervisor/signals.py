"""Signals to the parent of a child, each passed on to it once."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IGNORABLE = (signal.SIGHUP, signal.SIGTSTP)
Handler = Callable[[int, Any], None]


class Receiver(Protocol):
    """A child that signals are passed on to."""

    def send(self, number: int) -> None:
        """Send a signal to it alone, if it still runs."""

    def send_to_group(self, number: int) -> None:
        """Send a signal to it and to the processes that it started."""


class Signals:
    """What was received: the first asks a run to save and end, a second one to end at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._waiting = deque[int]()
        self._child: Receiver | None = None

    def attach(self, child: Receiver | None) -> None:
        """Pass signals on to this child from now on; also those that came while there was none."""
        self._child = child
        if child:
            self._pass_on()

    @property
    def reason(self) -> str:
        """The first signal, as state.json names it."""
        return name_of(self.received[0])

    def ask(self) -> None:
        """Ask the child to save and end, as a first signal does."""
        self.receive(signal.SIGTERM)

    def receive(self, number: int, frame: Any = None) -> None:
        """What the process does with a signal."""
        self.received.append(number)
        self._waiting.append(number)
        self._pass_on()

    def stop(self, number: int, frame: Any = None) -> None:
        """Ctrl-Z: the child's processes stop, then this one; after `fg` all go on."""
        if self._child:
            self._child.send_to_group(signal.SIGSTOP)
        # By the default action, which the system leaves out where no shell could go on with it.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self.stop)
        if self._child:
            self._child.send_to_group(signal.SIGCONT)

    def _pass_on(self) -> None:
        while self._child and self._waiting:
            # Another signal's handler may run at any point: what is taken here is sent once.
            with suppress(IndexError):
                self._child.send(self._waiting.popleft())


@contextmanager
def received_signals() -> Iterator[Signals]:
    """Signals of the block."""
    signals = Signals()
    handlers: dict[int, Handler] = dict.fromkeys(PASSED_ON, signals.receive)
    with handled(handlers | {signal.SIGTSTP: signals.stop}):
        yield signals


@contextmanager
def interrupting() -> Iterator[None]:
    """SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does, with their name."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(name_of(number))

    with handled({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handle signals while the block runs; SIGHUP and SIGTSTP stay ignored where they were (nohup).

    Only the main thread can: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = {
        number: handler
        for number, handler in handlers.items()
        if number not in IGNORABLE or signal.getsignal(number) != signal.SIG_IGN
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def name_of(number: int) -> str:
    """A signal as messages and state.json name it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
