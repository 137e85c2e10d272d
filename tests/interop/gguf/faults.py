"""Damaged GGUF files by seed: bytes, counts, values and places of a whole one made wrong."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
NUMBERS = [0, 1, 2, 3, 7, 31, 32, 33, 255, 1 << 15, 1 << 24, 1 << 31, 1 << 32, 1 << 62, 1 << 63]
FLOATS = [0.0, -1.0, 1e-40, 1e38, float("inf"), float("nan")]


FIRST_ELEMENTS = 4  # of an array of numbers: the rest would hide all other fields


class Field(NamedTuple):
    """A number in the header: its offset, how it is packed, and whether it is a count."""

    offset: int
    letter: str
    structural: bool  # another value of it moves all that follows


class Anatomy(NamedTuple):
    fields: list[Field]
    texts: list[tuple[int, int]]  # where the bytes of texts begin and end
    header_bytes: int


def dissect(content: bytes) -> Anatomy:
    """Every field of a whole file, read by the specification, without any check."""
    fields: list[Field] = []
    texts: list[tuple[int, int]] = []
    offset = 8

    def number(letter: str, structural: bool = False) -> int:
        nonlocal offset
        fields.append(Field(offset, letter, structural))
        (value,) = struct.unpack_from(f"<{letter}", content, offset)
        offset += struct.calcsize(f"<{letter}")
        return value

    def text() -> None:
        nonlocal offset
        length = number("Q", True)
        texts.append((offset, offset + length))
        offset += length

    def value(kind: int) -> None:
        if kind == TEXT:
            text()
        elif kind == ARRAY:
            inner, count = number("I", True), number("Q", True)
            for element in range(count):
                value(inner)
                if element >= FIRST_ELEMENTS and inner != TEXT:
                    fields.pop()
        else:
            number(SCALARS[kind])

    tensors, values = number("Q", True), number("Q", True)
    for _ in range(values):
        text()
        value(number("I", True))
    for _ in range(tensors):
        text()
        for _ in range(number("I", True)):
            number("Q")
        number("I")
        number("Q")
    return Anatomy(fields, texts, offset)


def damaged(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """So many damaged files; a seed gives the same ones again."""
    random = np.random.default_rng(seed)
    anatomy = dissect(whole)
    loose = [field for field in anatomy.fields if not field.structural]
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            kind = random.choice(8, p=[0.1, 0.06, 0.06, 0.08, 0.4, 0.14, 0.1, 0.06])
            if kind == 0:
                _set_bytes(content, random, 4, anatomy.header_bytes)
            elif kind == 1:
                _set_bytes(content, random, anatomy.header_bytes, len(whole))
            elif kind == 2:
                del content[random.integers(0, len(content)) :]
            elif kind == 3:
                _set_number(content, random, anatomy.fields)
            elif kind == 4:
                _set_number(content, random, loose)
            elif kind == 5:
                _set_text(content, random, anatomy.texts)
            elif kind == 6:
                _copy_field(content, random, loose)
            else:
                _move_block(content, random)
        yield bytes(content)


def _set_bytes(content: bytearray, random: np.random.Generator, start: int, stop: int) -> None:
    for _ in range(random.integers(1, 5)):
        offset = int(random.integers(start, stop))
        if offset < len(content):
            content[offset] = int(random.integers(256))


def _set_number(content: bytearray, random: np.random.Generator, fields: list[Field]) -> None:
    offset, letter, _ = fields[random.integers(len(fields))]
    size = struct.calcsize(f"<{letter}")
    if offset + size > len(content):
        return
    if letter in "fd":
        packed = struct.pack(f"<{letter}", FLOATS[random.integers(len(FLOATS))])
    else:
        number = NUMBERS[random.integers(len(NUMBERS))] * (-1) ** int(random.integers(2))
        packed = (number % (1 << 8 * size)).to_bytes(size, "little")
    content[offset : offset + size] = packed


def _set_text(
    content: bytearray, random: np.random.Generator, texts: list[tuple[int, int]]
) -> None:
    """A text gets a byte of its own, or the beginning of another one of them."""
    start, stop = texts[random.integers(len(texts))]
    if not start < stop <= len(content):
        return
    if random.integers(2):
        content[int(random.integers(start, stop))] = int(random.integers(256))
    else:
        other, end = texts[random.integers(len(texts))]
        length = min(stop - start, end - other)
        content[start : start + length] = content[other : other + length]


def _copy_field(content: bytearray, random: np.random.Generator, fields: list[Field]) -> None:
    """A number takes the value of another one: sizes, places and ids are mixed up."""
    one, other = (fields[random.integers(len(fields))] for _ in range(2))
    size = min(struct.calcsize(f"<{field.letter}") for field in (one, other))
    if max(one.offset, other.offset) + size <= len(content):
        content[one.offset : one.offset + size] = content[other.offset : other.offset + size]


def _move_block(content: bytearray, random: np.random.Generator) -> None:
    """Some bytes are left out, or given twice."""
    if not content:
        return
    start = int(random.integers(len(content)))
    block = content[start : start + int(random.integers(1, 64))]
    if random.integers(2):
        del content[start : start + len(block)]
    else:
        content[start:start] = block
