"""Characters that a tokenizer has no tokens for: it drops them or writes its unknown token."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

# A slow tokenizer is not thread-safe; a fast one is, once it is set up.
TOKENIZER = threading.Lock()
BROKEN = "\ufffd"
SHOWN = 12


class Loss(NamedTuple):
    """What is lost of a text."""

    lost: str  # the characters, in order
    characters: int  # of the text; white space counts if it is lost

    @property
    def most(self) -> bool:
        """Whether more than half is lost."""
        return 2 * len(self.lost) > self.characters

    def __str__(self) -> str:
        distinct = "".join(dict.fromkeys(self.lost))
        shown = distinct[:SHOWN] + "..." * (len(distinct) > SHOWN)
        return f"{len(self.lost):,} of {self.characters:,} characters ({shown!r})"


NOTHING = Loss("", 0)


@dataclass(frozen=True)
class Unwritten:
    """Finds what a tokenizer loses; one that has every byte loses nothing, which is asked once."""

    tokenizer: Any
    fast: Any  # the tokenizer in Rust, if there is one
    control: re.Pattern[str]  # matches control tokens, which are not text
    _dropped: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def possible(self) -> bool:
        """Whether there are characters that it cannot write."""
        try:
            with TOKENIZER:
                return any(self._decoded(text).strip() != text for text in _probes())
        except Exception:  # one without an unknown token may refuse what it does not know
            return True

    def of(self, texts: Sequence[str]) -> list[Loss]:
        """The loss of each text."""
        if not self.possible:
            return [NOTHING] * len(texts)
        pieces = [list(filter(None, self.control.split(text))) for text in texts]
        losses = iter(self._of_pieces([piece for own in pieces for piece in own]))
        return [_total([next(losses) for _ in own]) for own in pieces]

    def _of_pieces(self, texts: list[str]) -> list[Loss]:
        if self.fast is None:
            with TOKENIZER:
                return [self._of_words(text) for text in texts]
        if not self._unknown_ids:
            dropped = {c for text in texts for c in set(text) if self._drops(c)}
            return [_loss(text, "".join(c for c in text if c in dropped)) for text in texts]
        encodings = self.fast.encode_batch(texts, add_special_tokens=False)
        return [self._of_tokens(*both) for both in zip(texts, encodings, strict=True)]

    def _of_tokens(self, text: str, encoding: Any) -> Loss:
        """What is in unknown tokens, and what is in none, white space aside."""
        lost: list[str] = []
        at = lost_until = 0
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            lost += text[at:start].split()
            at = max(at, end)
            if number in self._unknown_ids:
                # The bytes of one character may be several tokens.
                span = text[max(start, lost_until) : end]
                lost += span.split() or [span]
                lost_until = end
        return _loss(text, "".join([*lost, *text[at:].split()]))

    def _of_words(self, text: str) -> Loss:
        """The same without offsets: by what words, and their characters, are alone."""
        lost: list[str] = []
        for word in filter(self._is_unknown, text.split()):
            lost += [c for c in word if self._is_unknown(c)] or [word]
        return _loss(text, "".join(lost))

    def _is_unknown(self, text: str) -> bool:
        ids = self._ids(text)
        return not ids or not self._unknown_ids.isdisjoint(ids)

    def _drops(self, character: str) -> bool:
        """Whether a character, or some of its bytes, has no token; where characters are dropped,
        the tokens that follow have wrong offsets."""
        if character not in self._dropped:
            text = self._decoded(character).strip()
            gone = not text or (BROKEN in text and character != BROKEN)
            self._dropped[character] = gone and not character.isspace()
        return self._dropped[character]

    def _ids(self, text: str) -> list[int]:
        if self.fast is not None:
            return list(self.fast.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _decoded(self, text: str) -> str:
        return str(self.tokenizer.decode(self._ids(text), clean_up_tokenization_spaces=False))

    @cached_property
    def _unknown_ids(self) -> set[int]:
        """The model's own unknown token: the tokenizer's may be another, such as its end token."""
        if self.fast is None:
            return {self.tokenizer.unk_token_id} - {None}
        model = json.loads(self.fast.to_str())["model"]
        return {self.fast.token_to_id(model.get("unk_token") or ""), model.get("unk_id")} - {None}


def _loss(text: str, lost: str) -> Loss:
    return Loss(lost, len("".join(text.split())) + sum(map(str.isspace, lost)))


def _total(losses: Sequence[Loss]) -> Loss:
    return Loss("".join(loss.lost for loss in losses), sum(loss.characters for loss in losses))


@cache
def _probes() -> list[str]:
    """Characters that together hold every byte of UTF-8 texts, and a line break.

    Their bytes: ASCII; each that continues a character; each that begins one of two, of three and
    of four bytes.
    """
    points = (
        *range(0x21, 0x7F),
        *range(0x4E00, 0x4E40),
        *(0xAB, *range(0xD7, 0x800, 0x40)),
        *(0x0905, *range(0x1016, 0xE000, 0x1000), 0xFA0E),
        0x1F600,
    )
    return ["a\nb", *map(chr, points)]
