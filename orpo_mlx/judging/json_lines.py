"""JSON Lines with one kind of row: read with all faults at once, appended and synced."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import check_regular, sync_entries, sync_file, write_error


class JsonRow(BaseModel):
    """A row of such a file; it may have other keys, which are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=JsonRow)


def load_rows(file: Path, kind: type[R]) -> list[R]:
    """All rows of a file; a last line that a kill cut short is left out.

    Raises OrpoError that names every line that is not such a row.
    """
    check_regular(file)
    try:
        *lines, last = file.read_bytes().split(b"\n")
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror}.") from None
    rows, faults = list[R](), list[str]()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(kind.model_validate_json(line))
            except ValidationError as error:
                faults.append(f"{file}:{number}: {_faults(error)}")
    if faults:
        raise collected(f"{file}: these lines cannot be read:", faults)
    return rows + _whole(last, kind)


def validated(content: object, kind: type[R], file: Path) -> R:
    """The content of a JSON file as such a row; raises OrpoError that names what is wrong."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fields = sorted({".".join(map(str, fault["loc"][:1])) for fault in error.errors()})
        raise OrpoError(f"{file}: wrong or missing: {', '.join(fields)}.") from None


def append_rows(file: Path, rows: Iterable[JsonRow]) -> None:
    """Append rows and sync them; a line that a kill left unfinished is ended or removed first.

    Raises OrpoError if the file cannot be written; it then has none of the rows.
    """
    text = "".join(
        json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) + "\n" for row in rows
    )
    try:
        is_new = not file.exists()
        with file.open("ab+", buffering=0) as stream:
            _end_line(stream.fileno())
            with _all_or_nothing(stream.fileno()):
                # Half of a surrogate pair is not UTF-8.
                _write_all(stream, text.encode(errors="replace"))
                sync_file(file)
        if is_new:
            sync_entries(file.parent)
    except OSError as error:
        raise write_error(file, error) from None


@contextmanager
def _all_or_nothing(descriptor: int) -> Iterator[None]:
    """Cut a file to what it was if the block fails to append to it."""
    size = os.fstat(descriptor).st_size
    try:
        yield
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _write_all(stream: RawIOBase, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[stream.write(left) or 0 :]


def _whole(last: bytes, kind: type[R]) -> list[R]:
    """The row of a line without its end, if it is whole."""
    try:
        return [kind.model_validate_json(last)] if last.strip() else []
    except ValidationError:
        return []


def _end_line(descriptor: int) -> None:
    """Let a file end with a whole line."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    whole, _, last = os.pread(descriptor, size, 0).rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        os.ftruncate(descriptor, len(whole) + bool(whole))
    else:
        os.write(descriptor, b"\n")


def _faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg']}"
        for fault in error.errors()
    )
