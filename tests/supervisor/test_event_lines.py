"""What a child reports arrives as it was, whole, in order, and whatever becomes of its reader."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from orpo_mlx.events import (
    Evaluated,
    Event,
    Finished,
    MicroBatchDone,
    Notice,
    PhaseTime,
    Progress,
    RowCounts,
    Saved,
    SettingsChanged,
    Started,
    StepDone,
)
from orpo_mlx.supervisor.event_lines import (
    Failure,
    MemoryLimit,
    MessagePipe,
    Result,
    message_line,
    parse_message,
)

MESSAGES: list[Any] = [
    Notice("two\nlines, \u4f60 and \ud800", warning=True),
    RowCounts("training", ((3, "left out"), (4, "kept"))),
    Progress("Tokenizing", 3, 0),
    PhaseTime("imports", 0.25),
    Started(3, 10, 5, 1000, 4),
    MicroBatchDone(4, 1, 2),
    StepDone(4, {"loss": 1.5, "grad_norm": float("inf")}),
    Evaluated(4, {"eval_loss": 0.1 + 0.2}),
    Saved(4, Path("run/checkpoints/step-0000004")),
    Finished(4, True, Path("run")),
    SettingsChanged(4, {"grad_checkpoint": True, "micro_batch_size": 2}, "From now on"),
    MemoryLimit(2**40),
    Failure("What is wrong."),
    Result({"output": "run", "step": 4, "stopped": False, "eval_loss": 1e-300}, False, True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was(message: Any) -> None:
    line = message_line(message)
    assert line.count(b"\n") == 1
    again = parse_message(line)
    assert again == message
    for field in fields(message):
        assert type(getattr(again, field.name)) is type(getattr(message, field.name))


def test_no_type_of_event_is_left_out() -> None:
    assert {type(message) for message in MESSAGES} >= set(get_args(Event))


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"message": "Other"}', b'{"message": "StepDone", "step": "x"}',
     b'{"message": "Saved", "step": 1}', b"\xff", b"[" * 100_000],
)  # fmt: skip
def test_what_is_not_a_message_is_left_out(line: bytes) -> None:
    assert parse_message(line) is None


def test_a_message_sent_while_another_is_being_written_follows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a signal's handler does; the system takes few bytes at a time."""
    written: list[bytes] = []
    send = MessagePipe(9)

    def write(descriptor: int, content: bytes) -> int:
        if not written:
            send(Notice("second"))
        written.append(content[:7])
        return len(written[-1])

    monkeypatch.setattr(os, "write", write)
    send(Notice("first"))
    expected = [message_line(Notice(text)) for text in ("first", "second")]
    assert b"".join(written) == b"".join(expected)


def test_a_reader_that_has_left_is_noticed_and_nothing_more_is_written() -> None:
    reading, writing = os.pipe()
    send = MessagePipe(writing)
    send(Notice("one"))
    assert (os.read(reading, 1000), send.broken) == (message_line(Notice("one")), False)
    os.close(reading)
    send(Notice("two"))
    send(Notice("three"))
    assert send.broken
    os.close(writing)
