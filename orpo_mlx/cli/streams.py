"""Standard output and error as they may be: full, closed, in ASCII, a terminal that obeys text."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

# What moves a cursor, changes a title, or turns the direction of what follows.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text whose control characters are written out; lines and tabs stay."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def is_utf8(text: str) -> bool:
    """Whether a text can be written: bytes that were not UTF-8 are lone surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Letters that a stream cannot hold are written out, and the work goes on where stderr cannot
    be written: its reader has left, its disk is full."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        yield
        return
    with redirect_stderr(_Forgiving(sys.stderr)):
        yield


class _Forgiving(io.TextIOBase):
    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._stream.encoding)

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)


def silence(stream: Any) -> None:
    """Let what a stream still holds, and all that follows, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
