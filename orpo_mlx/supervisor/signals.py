"""Signals to the parent of a training child, each passed on to it once."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orpo_mlx.supervisor.child import Child

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """What was received: the first asks a run to save and end, a second one to end at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._waiting = deque[int]()
        self._child: Child | None = None

    def attach(self, child: Child | None) -> None:
        """Pass signals on to this child from now on; also those that came while there was none."""
        self._child = child
        if child:
            self._pass_on()

    @property
    def reason(self) -> str:
        """The first signal, as state.json names it."""
        first = self.received[0]
        return "Ctrl-C" if first == signal.SIGINT else signal.Signals(first).name

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
    """Signals of the block; SIGHUP and SIGTSTP stay ignored where they were (nohup)."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handlers: dict[int, Any] = dict.fromkeys(PASSED_ON, signals.receive)
    handlers[signal.SIGTSTP] = signals.stop
    for ignorable in (signal.SIGHUP, signal.SIGTSTP):
        if signal.getsignal(ignorable) == signal.SIG_IGN:
            del handlers[ignorable]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does, with their name."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    wanted = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
