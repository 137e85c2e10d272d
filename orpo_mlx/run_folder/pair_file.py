"""A file with rows of numbers for each pair, and a checksum a pair: what is read is as written.

Knows nothing of what the numbers are. Imports no mlx.
"""

import errno
import json
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import remove, replacing, sync_file

STATES, SUMS_OF_PAIRS, FACTS = "states.bin", "sums.bin", "facts.json"
MISSING = -1  # instead of a CRC-32
_NOT_KEPT = {"kept": False}


class PairFile:
    """Rows of pairs in one file, written once each and read through a map of memory.

    The file is as long as all of it from the start, with holes; nothing is reserved, for a disk
    that is full is an error of the write.
    """

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],  # what the rows depend on: with others the folder is emptied
        starts: np.ndarray,  # (N + 1,) the first row of each pair, and the number of all
        dtype: Any,
        width: int,
    ):
        """Open the folder, with the rows that it holds already; raises OSError or OrpoError."""
        self.states, self._sums_file = folder / STATES, folder / SUMS_OF_PAIRS
        self._starts, self._row_bytes = starts, width * np.dtype(dtype).itemsize
        size = int(starts[-1]) * self._row_bytes
        sums = _stored_sums(folder, facts, pairs=len(starts) - 1, size=size)
        if sums is None:
            _clear(folder, facts, size)
            sums = np.full(len(starts) - 1, MISSING, dtype=np.int64)
        self._sums = sums
        self._compared = np.zeros(len(sums), dtype=bool)
        self._unsaved = False
        self._rows = np.memmap(self.states, dtype, "r", shape=(int(starts[-1]), width))

    def has(self, index: int) -> bool:
        """Whether the rows of a pair were written."""
        return bool(self._sums[index] != MISSING)

    def read(self, index: int) -> np.ndarray | None:
        """(T, D) the rows of a pair; None if they were not written, or are not what was written.

        They are compared with their checksum the first time.
        """
        if not self.has(index):
            return None
        rows: Any = self._rows[self._starts[index] : self._starts[index + 1]]
        if not self._compared[index] and zlib.crc32(rows) != self._sums[index]:
            return None
        self._compared[index] = True
        return rows

    def write(self, index: int, rows: np.ndarray) -> None:
        """The (T, D) rows of a pair; raises OSError if the disk does not take them."""
        content = np.ascontiguousarray(rows).tobytes()
        left = memoryview(content)
        offset = int(self._starts[index]) * self._row_bytes
        self._sums[index], self._compared[index] = MISSING, False
        descriptor = os.open(self.states, os.O_WRONLY)
        try:
            while left:
                written = os.pwrite(descriptor, left, offset)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left, offset = left[written:], offset + written
        finally:
            os.close(descriptor)
        self._sums[index], self._unsaved = zlib.crc32(content), True

    def flush(self) -> None:
        """Write the rows to the disk itself, then which there are; raises OSError or OrpoError."""
        if not self._unsaved:
            return
        sync_file(self.states)
        with replacing(self._sums_file) as file:
            file.write_bytes(self._sums.tobytes())
        self._unsaved = False

    def remove(self) -> None:
        """Give its space back to the disk, as far as that goes; `was_kept` stays true."""
        with suppress(OSError):
            remove(self.states)
            remove(self._sums_file)


def was_kept(folder: Path) -> bool | None:
    """Whether a run that is resumed kept rows in a folder; None if the folder does not show it."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8")) != _NOT_KEPT
    except (OSError, ValueError, RecursionError):
        return None


def save_not_kept(folder: Path) -> None:
    """Make `was_kept` false, as far as the disk allows."""
    with suppress(OrpoError):
        _save_facts(folder, _NOT_KEPT)


def _stored_sums(
    folder: Path, facts: dict[str, Any], *, pairs: int, size: int
) -> np.ndarray | None:
    """(N,) the checksums of a folder with the same facts, and a file of the right size."""
    try:
        if json.loads((folder / FACTS).read_text(encoding="utf-8")) != facts:
            return None
        if (folder / STATES).stat().st_size != size:
            return None
        content = (folder / SUMS_OF_PAIRS).read_bytes()
    except (OSError, ValueError, RecursionError):
        return None
    # A bit that has changed here is a checksum that does not fit.
    return np.frombuffer(content, np.int64).copy() if len(content) == 8 * pairs else None


def _clear(folder: Path, facts: dict[str, Any], size: int) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    _save_facts(folder, facts)
    with (folder / STATES).open("wb") as stream:
        stream.truncate(size)


def _save_facts(folder: Path, facts: dict[str, Any]) -> None:
    with replacing(folder / FACTS) as file:
        file.write_text(json.dumps(facts) + "\n", encoding="utf-8")
