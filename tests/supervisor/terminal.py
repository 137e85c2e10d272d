"""Commands on a terminal of their own, under a shell as small as can be that knows Ctrl-Z."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.alarm import HANG_SECONDS

CTRL_C, CTRL_Z = b"\x03", b"\x1a"
# A session leader: it puts a command into a group of its own in the foreground, writes what becomes
# of it, and when it was stopped lets it go on once a line comes.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, code = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(code):
        sys.exit(os.waitstatus_to_exitcode(code))
    os.tcsetpgrp(0, os.getpgrp())
    print("stopped", os.WSTOPSIG(code), flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, pid)
    os.killpg(pid, signal.SIGCONT)
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Shown(NamedTuple):
    status: int
    text: str


class Terminal:
    """The person's side: keys, and what has been shown so far."""

    def __init__(self, descriptor: int, process: "subprocess.Popen[bytes]"):
        self._descriptor, self._process = descriptor, process
        self._shown = b""

    def press(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def read_until(self, done: Callable[[], bool]) -> None:
        """Read what is shown until that holds, or the command has ended."""
        late = time.monotonic() + HANG_SECONDS
        while not done():
            assert time.monotonic() < late, self.text
            if select.select([self._descriptor], [], [], 0.02)[0]:
                try:
                    content = os.read(self._descriptor, 65_536)
                except OSError:  # EIO: nobody has the terminal any more
                    content = b""
                if not content:
                    return
                self._shown += content

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self._shown.decode(errors="replace"))

    def end(self) -> Shown:
        self.read_until(lambda: False)
        return Shown(self._process.wait(timeout=HANG_SECONDS), self.text)


def on_terminal(
    command: Sequence[str], env: Mapping[str, str], act: Callable[[Terminal], None]
) -> Shown:
    """Run a command on a terminal of 100 columns, while `act` is the person at it."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", SHELL, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**env, "TERM": "xterm", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours, process)
    try:
        act(terminal)
        return terminal.end()
    finally:
        process.send_signal(signal.SIGHUP)
        process.wait()
        os.close(ours)


def state_of(pid: int) -> str:
    """R, S, T (stopped), Z, or "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
