"""A training child: started in a process group of its own, read, signalled and waited for."""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.supervisor.handover import Handover, settings_file

COMMAND = (sys.executable, "-P", "-m", "orpo_mlx")
MOST_OUTPUT = 1_000_000  # bytes that are kept of what a child prints
LAST_WORDS = 4_000
_READ = 65_536


class Child:
    """A started child; `status` is None until it has ended, then as `subprocess` has it."""

    def __init__(self, process: "subprocess.Popen[bytes]", events: int, output: IO[bytes]):
        self._process, self._events, self._output = process, events, output
        self._rest, self._size = b"", 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(events, selectors.EVENT_READ)
        self._open = True
        self.stopped = False  # by SIGSTOP or Ctrl-Z
        self.status: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self, seconds: float) -> list[bytes] | None:
        """The lines that are completed by what has come; None if nothing came in so long."""
        if not self._open or not self._selector.select(seconds):
            return None
        content = os.read(self._events, _READ)
        if not content:
            self._selector.unregister(self._events)
            self._open = False
        *lines, self._rest = (self._rest + content).split(b"\n")
        return lines

    def look(self) -> None:
        """Notice that it has ended, was stopped or goes on."""
        while self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not pid:
                return
            if os.WIFSTOPPED(code) or os.WIFCONTINUED(code):
                self.stopped = os.WIFSTOPPED(code)
            else:
                self.status = self._process.returncode = os.waitstatus_to_exitcode(code)

    @property
    def at_end(self) -> bool:
        """Whether it has closed its end of the pipe."""
        return not self._open

    def send(self, number: int) -> None:
        """Send a signal to it alone, if it still runs."""
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_to_group(self, number: int) -> None:
        """Send a signal to it and to the processes that it started."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
            os.killpg(self.pid, number)

    def new_output(self) -> str:
        """What it has printed since the last look, or the end of that; the file is kept small."""
        size = os.fstat(self._output.fileno()).st_size
        new = self.last_words(min(size - self._size, LAST_WORDS)) if size > self._size else ""
        if size > MOST_OUTPUT:
            words = self.last_words(MOST_OUTPUT // 2)
            self._output.truncate(0)  # it appends
            os.write(self._output.fileno(), words.encode())
            size = os.fstat(self._output.fileno()).st_size
        self._size = size
        return new

    def last_words(self, most: int = LAST_WORDS) -> str:
        """The end of what it printed."""
        size = os.fstat(self._output.fileno()).st_size
        start = max(size - most, 0)
        return os.pread(self._output.fileno(), most, start).decode(errors="replace")

    def close(self) -> None:
        """Give back its descriptors; what it started ends with it."""
        if self.status is None:  # it hangs in the system, beyond any signal
            self._process.returncode = -signal.SIGKILL
        self.send_to_group(signal.SIGKILL)
        self._selector.close()
        os.close(self._events)
        self._output.close()


def start_child(config: TrainConfig, lock: int, command: Sequence[str] = COMMAND) -> Child:
    """Start a child that trains by these settings; `lock` is the run folder's descriptor, or -1.

    Its standard input is empty, and what it prints goes into a file without a name.
    """
    output = tempfile.TemporaryFile(mode="a+b", buffering=0)  # noqa: SIM115
    reading, writing = os.pipe()
    try:
        with settings_file(config) as settings:
            handover = Handover(settings, writing, lock)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=handover.environment(),
                pass_fds=handover.descriptors(),
                process_group=0,
            )
    except BaseException:
        os.close(reading)
        output.close()
        raise
    finally:
        os.close(writing)
    return Child(process, reading, output)
