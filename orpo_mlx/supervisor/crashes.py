"""What children that died printed last, as files in the run folder."""

import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.run_folder.folder import CRASHES

MOST_KEPT = 10
SHOWN_LINES = 8


class Crash(NamedTuple):
    """One death: when, what it was, what the child printed last."""

    time: dt.datetime
    text: str
    words: str

    @property
    def file_name(self) -> str:
        return f"{self.time:%Y-%m-%dT%H-%M-%S.%f}.txt"


def save_crashes(output: Path, crashes: Sequence[Crash]) -> Path:
    """Write the last crashes of this run, a file each, as far as the disk allows that."""
    folder = output / CRASHES
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for crash in crashes[-MOST_KEPT:]:
            text = f"{crash.text}\n\n{crash.words.rstrip()}\n"
            (folder / crash.file_name).write_text(text, encoding="utf-8")
    return folder


def shown_words(words: str) -> str:
    """The last lines of what a child printed, indented; "" for nothing."""
    lines = [line for line in words.splitlines() if line.strip()][-SHOWN_LINES:]
    return "".join(f"\n  {line}" for line in lines)
