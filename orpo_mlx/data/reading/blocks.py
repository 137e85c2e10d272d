"""Blocks and lines of files, unpacked if gzip or Zstandard. Does not know what they mean."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.extras import import_extra

# A longer line holds no text of a conversation, and must not fill the memory.
MAX_LINE_BYTES = 4_000_000
BLOCK_BYTES = 1 << 20
PACKED_BLOCK_BYTES = 1 << 14  # text packs ten to one, and a hundred to one where it repeats
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
ZSTANDARD = b"\x28\xb5\x2f\xfd"


class DamagedError(Exception):
    """The file cannot be read to its end; the text says why, and follows the file's name."""


class Entry(NamedTuple):
    """One row as it is in a text, or what is wrong with it.

    `location` follows the name of the file: its line, or `row 17` where rows share lines.
    """

    location: str
    values: dict[str, Any] | None
    fault: str
    size: int  # in characters


def iter_blocks(file: Path) -> Iterator[bytes]:
    """The content of a file, unpacked; raises DamagedError where it ends too early."""
    with file.open("rb") as stream:
        magic = stream.peek(4)[:4]
        if magic.startswith(GZIP):
            # 16 more than the window's bits: with the header of gzip
            yield from _unpack(stream, partial(zlib.decompressobj, 16 + zlib.MAX_WBITS))
        elif magic == ZSTANDARD:
            zstandard = import_extra("zstandard", "zst")
            yield from _unpack(stream, zstandard.ZstdDecompressor().decompressobj)
        else:
            yield from iter(partial(stream.read, BLOCK_BYTES), b"")


def iter_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without their newlines; one that spans blocks is cut past MAX_LINE_BYTES."""
    tail = b""
    for block in blocks:
        first, *rest = block.split(b"\n")
        tail = (tail + first)[: MAX_LINE_BYTES + 1]
        if rest:
            yield tail
            yield from rest[:-1]
            tail = rest[-1]
    if tail:
        yield tail


def bad_byte(text: str) -> str:
    """The fault of a text in which `surrogateescape` met a byte that is not UTF-8, or nothing."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"not UTF-8: byte 0x{ord(text[error.start]) - 0xDC00:02x}"
    return ""


def _unpack(stream: Any, start: Callable[[], Any]) -> Iterator[bytes]:
    """The content of gzip members or Zstandard frames, one after another."""
    engine = None
    for block in iter(partial(stream.read, PACKED_BLOCK_BYTES), b""):
        while block := block if engine else block.lstrip(b"\0"):  # gzip may be padded with zeros
            engine = engine or start()
            yield _decompress(engine, block)
            block = engine.unused_data if engine.eof else b""
            engine = None if engine.eof else engine
    if engine:
        raise DamagedError("the file is cut short")


def _decompress(engine: Any, block: bytes) -> bytes:
    try:
        return engine.decompress(block)
    except Exception as error:  # zlib's and zstandard's own have no common parent
        raise DamagedError(f"the file is damaged ({error})") from None
