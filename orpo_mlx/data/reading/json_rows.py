"""JSON objects from lines, or from one array that may be larger than the memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from orpo_mlx.data.reading.blocks import MAX_LINE_BYTES, DamagedError, Entry, bad_byte

SPACES = re.compile(r"[ \t\r\n]*")


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The object of a line, or what is wrong with it; neither for a blank line."""
    if not line.strip():
        return None, ""
    if len(line) > MAX_LINE_BYTES:
        return None, (
            f"the line is longer than {MAX_LINE_BYTES:,} bytes (one JSON object per line is read)"
        )
    try:
        text = line.rstrip().decode("utf-8")
        values = _STRICT.decode(text)
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
    except json.JSONDecodeError as error:
        bom = text.startswith("\ufeff")
        reason = "Unexpected UTF-8 BOM (decode using utf-8-sig)" if bom else _reason(error)
        return None, f"not JSON: {reason} at column {error.colno}"
    except _FaultError as error:
        return None, str(error)
    except (ValueError, RecursionError) as error:
        return None, f"JSON that cannot be read: {_reason(error)}"
    return _object(values, text)


def iter_array(blocks: Iterator[bytes]) -> Iterator[Entry]:
    """The entries of the array that `blocks` hold, called by line, or by row if it is one line.

    A fault inside an entry is that entry's; what breaks the array raises DamagedError.
    """
    window = _Window(blocks)
    by_line = "\n" in window.text.strip()
    rows = 0
    window.pass_over("[")
    while window.next_character() != "]" or rows:
        values, end, fault = _decode(window)
        text = window.text[window.at : end]
        rows += 1
        location = f"{window.line}" if by_line else f"row {rows}"
        window.move(end)
        fault = fault or bad_byte(text)
        if not fault:
            values, fault = _object(values, text)
        yield Entry(location, None if fault else values, fault, len(text))
        if window.next_character() != ",":
            break
        window.pass_over(",")
    window.pass_over("]")
    if window.next_character():
        raise window.damage("something follows the array", window.at)


class _Window:
    """The part of a text that is in memory, and a position in it that moves forward."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        # A bad byte becomes half a character, so that it is a fault of its entry alone.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._before = 0  # characters of the line at the window's beginning that came before it
        self.text, self.at, self.line = "", 0, 1
        self.ended = False
        self.read_block()

    def read_block(self) -> None:
        """Forget what was passed, and add a block."""
        self._before = self._column(self.at) - 1
        block = next(self._blocks, b"")
        self.ended = not block
        self.text = self.text[self.at :] + self._decoder.decode(block, self.ended)
        self.at = 0

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def next_character(self) -> str:
        """The next one that is not a space, where the position then is; "" at the end."""
        while True:
            self.move(SPACES.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read_block()

    def pass_over(self, character: str) -> None:
        """Move past the next character; raises DamagedError if it is another."""
        actual = self.next_character()
        if not actual:
            raise DamagedError("the file is cut short: its array does not end")
        if actual != character:
            raise self.damage(f"expected {character}, found {actual}", self.at)
        self.move(self.at + 1)

    def damage(self, reason: str, at: int) -> DamagedError:
        line = self.line + self.text.count("\n", self.at, at)
        return DamagedError(f"not JSON: {reason} at line {line:,}, column {self._column(at):,}")

    def _column(self, at: int) -> int:
        newline = self.text.rfind("\n", 0, at)
        return at - newline if newline >= 0 else at + 1 + self._before


def _decode(window: _Window) -> tuple[Any, int, str]:
    """The value at the position, where it ends, and a fault that json itself lets pass."""
    while True:
        try:
            value, end, fault = _value_at(window.text, window.at)
        except (ValueError, RecursionError) as error:
            reason = _reason(error)
            if len(window.text) - window.at > MAX_LINE_BYTES:
                reason = f"longer than {MAX_LINE_BYTES:,} characters, or {reason}"
            elif not window.ended:
                window.read_block()
                continue
            raise window.damage(reason, getattr(error, "pos", window.at)) from None
        # A number at the window's end may continue after it.
        if end < len(window.text) or window.ended:
            return value, end, fault
        window.read_block()


def _value_at(text: str, at: int) -> tuple[Any, int, str]:
    try:
        return *_STRICT.raw_decode(text, at), ""
    except _FaultError as error:
        return *_LENIENT.raw_decode(text, at), str(error)


class _FaultError(Exception):
    """A fault that json itself lets pass."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise _FaultError(f'the key "{_printable(double)}" is given twice in one object')
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise _FaultError(f"not JSON: {name} is not a JSON value (write null)")


# Made once: json.loads makes one a call when it is given hooks.
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder()


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at")
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(values: Any, text: str) -> tuple[dict[str, Any] | None, str]:
    """The values of a row whose JSON is `text`, or what is wrong with them."""
    if not isinstance(values, dict):
        return None, f"must be a JSON object, found {_kind(values)}"
    return values, _half_character(values) if "\\u" in text else ""


def _half_character(values: dict[str, Any]) -> str:
    """The fault of a text with a lone surrogate, which no tokenizer accepts, or nothing."""
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
