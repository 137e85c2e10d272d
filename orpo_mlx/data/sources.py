"""Raw rows from files, each with its file and line. Knows nothing of what the rows mean."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from orpo_mlx.errors import OrpoError

# A longer line is a JSON array on one line, or no text of a conversation.
MAX_LINE_BYTES = 4_000_000
CHUNK_ROWS = 250
CHUNK_BYTES = 4_000_000
BOM = b"\xef\xbb\xbf"
PREVIEW_HINT = "A row looks like: " + json.dumps(
    {"prompt": "How do I ...?", "chosen": "First ...", "rejected": "No idea."}
)


class Row(NamedTuple):
    """One JSON object of a file; `place` is file:line."""

    place: str
    values: dict[str, Any]


class Problem(NamedTuple):
    """What is wrong with a line, for the person who made it."""

    place: str
    fault: str

    def __str__(self) -> str:
        return f"{self.place}: {self.fault}"


class Source(NamedTuple):
    """Files of one source, in order.

    `name` is what the user wrote, without the weight; `labels` is how each file is called in
    places. Files of one label are shards of one table: their row numbers run on.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    weight: float = 1.0


class Chunk(NamedTuple):
    """Consecutive raw rows of one file, not yet parsed; `first` numbers the first of them.

    `content` holds lines as bytes, or (number, values), or is a table of pyarrow.
    """

    label: str
    first: int
    content: Any
    unit: str = ""


def find_sources(
    sources: Sequence[str],
    *,
    splits: Sequence[str],
    flag: str = "--data",
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Source]:
    """The files that sources name: files themselves, or the first of `splits` in a folder.

    Raises OrpoError for all sources that name none.
    """
    found, problems = [], []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = [path / f"{name}.jsonl" for name in splits]
            files = [file for file in files if file.is_file()]
            if files:
                found.append(Source(source, (files[0],), (str(files[0]),)))
            else:
                problems.append(_missing_split(flag, path, splits))
        elif path.is_file():
            found.append(Source(source, (path,), (str(path),)))
        else:
            problems.append(f"{flag} {source}: no such file or folder (from {Path.cwd()}).")
    if problems:
        raise OrpoError("\n".join(problems))
    return found


def iter_rows(source: Source, problems: list[Problem]) -> Iterator[Row]:
    """The rows of a source; what is wrong with one goes to `problems` instead."""
    for chunk in iter_chunks(source, problems):
        yield from rows_of(chunk, problems)


def iter_chunks(source: Source, problems: list[Problem]) -> Iterator[Chunk]:
    """The raw rows of a source, at most CHUNK_ROWS and about CHUNK_BYTES at a time."""
    for file, label in zip(source.files, source.labels, strict=True):
        try:
            with file.open("rb") as stream:
                number = 1
                for lines in _chunks(_iter_lines(stream)):
                    yield Chunk(label, number, lines)
                    number += len(lines)
        except OSError as error:
            raise OrpoError(f"{file}: cannot be read ({error.strerror}).") from None


def rows_of(chunk: Chunk, problems: list[Problem]) -> Iterator[Row]:
    """The rows of a chunk; what is wrong with one goes to `problems` instead."""
    for number, line in enumerate(chunk.content, start=chunk.first):
        values, fault = _parse(line.removeprefix(BOM) if number == 1 else line)
        if fault:
            problems.append(Problem(f"{chunk.label}:{number}", fault))
        elif values is not None:
            yield Row(f"{chunk.label}:{number}", values)


def _chunks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _iter_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, cut one byte past MAX_LINE_BYTES: none may fill the memory."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES + 1)


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The object of a line, or what is wrong with it; neither for a blank line."""
    if not line.strip():
        return None, ""
    if len(line) > MAX_LINE_BYTES:
        return None, (
            f"the line is longer than {MAX_LINE_BYTES:,} bytes (one JSON object a line is read)"
        )
    try:
        values = json.loads(
            line.rstrip().decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        return None, "not JSON that can be read: nested too deeply"
    except _FaultError as error:
        return None, str(error)
    except ValueError as error:  # a number of thousands of digits
        return None, f"not JSON that can be read: {error}"
    if not isinstance(values, dict):
        return None, f"must be a JSON object, found {_kind(values)}"
    return values, _half_character(values) if b"\\u" in line else ""


class _FaultError(Exception):
    """A fault that json itself lets pass."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise _FaultError(f'the key "{_printable(double)}" stands twice in one object')
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise _FaultError(f"not JSON: {name} is no JSON value (write null)")


def _half_character(values: dict[str, Any]) -> str:
    """The fault of a text with a lone surrogate, which no tokenizer takes, or nothing."""
    for column, value in values.items():
        try:
            json.dumps([column, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = _printable(error.object[error.start])
            return f'"{_printable(column)}" holds half a character (a lone surrogate, {half})'
    return ""


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "null")


def _missing_split(flag: str, folder: Path, splits: Sequence[str]) -> str:
    wanted = " or ".join(f"{split}.jsonl" for split in splits)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    return f"{flag} {folder}: the folder holds no {wanted} (found: {found}). Name a file instead."
