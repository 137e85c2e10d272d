"""Characters that nobody sees, as signs: for text that is shown to be looked at."""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

# Spaces are seen between words, but not at an end, doubled, or next to a line break. The two
# joiners U+200C and U+200D belong to letters and emoji around them.
_HIDDEN = re.compile(
    r"\A +| +\Z| {2,}| +(?=\n)|(?<=\n) +|[^\S ]|[\x00-\x1f\x7f-\x9f\xad"
    r"\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
SIGNS = {" ": "·", "\n": "↵\n", "\t": "→\t", "\r": "␍", "\u00a0": "⍽", "\x7f": "␡", "\u3000": "□"}


class Piece(NamedTuple):
    """Text as it is, or the signs that stand for it."""

    text: str
    is_sign: bool


def iter_pieces(text: str) -> Iterator[Piece]:
    """A text with signs where characters cannot be seen; none is left that moves a cursor."""
    position = 0
    for match in _HIDDEN.finditer(text):
        if match.start() > position:
            yield Piece(text[position : match.start()], False)
        yield Piece("".join(map(_sign, match[0])), True)
        position = match.end()
    if position < len(text):
        yield Piece(text[position:], False)


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if ord(character) < 32:
        return chr(0x2400 + ord(character))
    return f"<{unicodedata.name(character, f'U+{ord(character):04X}')}>"
