"""A run's metrics.jsonl followed from another process, which only reads. Imports no mlx."""

import os
from pathlib import Path

from orpo_mlx.run_folder.folder import METRICS
from orpo_mlx.training.metrics.log import metrics_row


class Follower:
    """The rows of a metrics.jsonl so far; `poll` reads what has come."""

    def __init__(self, folder: Path):
        self._file = folder / METRICS
        self._inode, self._offset, self._rest = -1, 0, b""
        self.rows: list[dict[str, float]] = []

    def poll(self) -> list[dict[str, float]]:
        """The rows that are new; all of them where a resumed run has cut and replaced the file."""
        try:
            with self._file.open("rb") as stream:
                facts = os.fstat(stream.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._inode, self._offset, self._rest, self.rows = facts.st_ino, 0, b"", []
                stream.seek(self._offset)
                content = stream.read()
        except OSError:  # not there yet
            return []
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        new = [row for line in lines if (row := metrics_row(line)) is not None]
        self.rows += new
        return new
