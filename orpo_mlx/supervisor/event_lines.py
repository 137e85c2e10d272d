"""What a training child reports, as JSON lines over a pipe: events, and how its work ended."""

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from orpo_mlx.events import Event


@dataclass(frozen=True)
class MemoryLimit:
    """What MLX's arrays may take on the child's device."""

    limit_bytes: int


@dataclass(frozen=True)
class Failure:
    """An error that the user can act on ended the child's work."""

    text: str


@dataclass(frozen=True)
class Result:
    """The child's work is done or stopped, everything is saved; `facts` is what `--json` prints.

    `segment`: it stopped by itself after --segment-steps.
    """

    facts: dict[str, Any]
    stopped: bool
    segment: bool = False


Message = Event | MemoryLimit | Failure | Result
_TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(Message)}


def message_line(message: Message) -> bytes:
    """A message as one line of JSON, its line feed included."""
    values = {"message": type(message).__name__, **asdict(message)}
    return json.dumps(values, default=os.fspath).encode() + b"\n"


def parse_message(line: bytes) -> Message | None:
    """The message of a line; None for one that a dying child cut short."""
    try:
        values = json.loads(line)
        kind = _TYPES[values.pop("message")]
        message: Message = _adapter(kind).validate_python(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError):
        return None
    return message


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class MessagePipe:
    """The child's end of the pipe, a callback of its run.

    `broken`: nobody reads any more.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._waiting: list[bytes] = []
        self._writing = False
        self.broken = False

    def __call__(self, message: Message) -> None:
        """Send a message; also from a signal's handler while another is being sent."""
        self._waiting.append(message_line(message))
        if self._writing:
            return
        self._writing = True
        try:
            while self._waiting:
                self._write(self._waiting.pop(0))
        finally:
            self._writing = False

    def _write(self, line: bytes) -> None:
        try:
            while line and not self.broken:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            self.broken = True
