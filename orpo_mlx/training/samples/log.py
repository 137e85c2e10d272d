"""samples.jsonl: the answers of a run to its sample prompts, by step. Imports no mlx."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import replacing, write_error


class Answered(NamedTuple):
    """A row of samples.jsonl."""

    step: int
    prompt: str | list[dict[str, Any]]
    answer: str
    finish: str  # stop, or length: cut
    tokens: int


def load_samples(file: Path) -> list[Answered]:
    """The rows of a file, none if it is not there; a line that a kill cut short is left out."""
    try:
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror}.") from None
    return [row for line in lines if (row := _row(line)) is not None]


def cut_samples(file: Path, after_step: int) -> None:
    """Remove the rows after a step, of a run cut short."""
    if file.exists():
        kept = [row for row in load_samples(file) if row.step <= after_step]
        with replacing(file) as new:
            new.write_text("".join(map(_line, kept)), encoding="utf-8")


def append_samples(file: Path, rows: Sequence[Answered]) -> None:
    """Write the rows of one step, all at once."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write("".join(map(_line, rows)))
    except OSError as error:
        raise write_error(file, error) from None


def _line(row: Answered) -> str:
    return json.dumps(row._asdict(), ensure_ascii=False) + "\n"


def _row(line: bytes) -> Answered | None:
    try:
        row = Answered(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return row if type(row.step) is int else None
