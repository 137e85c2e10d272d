"""The texts of pairs as the checks compare them: normalized, cut into units, into shingles."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.messages import Message, PreferencePair

SHINGLE_WORDS = 3
SHINGLE_CHARACTERS = 5  # where text has no spaces between words
# Han, kana, Thai, Lao, Khmer, Burmese: written without spaces between words.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
# Marks that can go without a change of meaning; +/=<>%$ and emoji say something.
_TRIVIAL = "!\"'()*,-.:;?[]_`"
_TRIVIA = re.compile(
    f"[\\s{re.escape(_TRIVIAL)}\u00a1\u00ab\u00b7\u00bb\u00bf\u2000-\u206f\u3000-\u303f\ufe00-\ufe0f]+"
)
_SPACED = str.maketrans(_TRIVIAL, " " * len(_TRIVIAL))
_NEGATIVE = re.compile(r"(?<![\w)])-(?=\d)")
_CODE = re.compile(
    r"```|\w ?(?:[=!<>]=|[-+*/]=|=>|->|&&|\|\|) ?\w|[{}]\s*$|\);\s*$|\w\(\)|\w\(\w+, ?\w",
    re.MULTILINE,
)
_CODE_SIGNS = ("=", "{", "}", "`", "->", "&&", "||", "(")  # one of them is in every match
_CODE_LINE = re.compile(
    r"^[ \t]*(?:(?:def|class|return|import|from|#include|function|const|let|var) \w+[^\n]*[(;:={]"
    r"|SELECT \w)",
    re.MULTILINE,
)


class Texts(NamedTuple):
    """A pair as the checks read it; a `_key` is a text without what is trivial in it."""

    split: str
    location: str
    pair: PreferencePair
    prompt: str  # all messages
    question: str  # all messages but the system's
    chosen: str
    rejected: str
    prompt_key: str
    chosen_key: str
    rejected_key: str

    @property
    def answers(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Both answers with the names of their columns."""
        return ("chosen", self.chosen), ("rejected", self.rejected)


def texts_of(splits: Mapping[str, Sequence[PreferencePair]]) -> list[Texts]:
    """The texts of all pairs, split by split."""
    return [_texts(split, pair) for split, pairs in splits.items() for pair in pairs]


def _texts(split: str, pair: PreferencePair) -> Texts:
    prompt = _joined(pair.messages)
    spoken = [m for m in pair.messages if m["role"] not in ("system", "developer")]
    question = prompt if len(spoken) == len(pair.messages) else _joined(spoken)
    chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
    keys = (normalize(text) for text in (prompt, chosen, rejected))
    return Texts(split, pair.location, pair, prompt, question, chosen, rejected, *keys)


def _joined(messages: Iterable[Message]) -> str:
    return "\n".join(text_of(message) for message in messages)


def text_of(message: Message) -> str:
    """All that a message holds: reasoning, content and tool calls."""
    parts: list[Any] = [message.get(k) for k in ("reasoning_content", "reasoning", "thinking")]
    parts.append(message.get("content"))
    if message.get("tool_calls"):
        parts.append(json.dumps(message["tool_calls"], ensure_ascii=False, sort_keys=True))
    return "\n".join(str(part) for part in parts if part)


def normalize(text: str) -> str:
    """A text without case, punctuation and the form of its white space.

    In code and sums all these carry meaning: there only the form of white space goes. So it is
    where nothing else would be left, as of an emoji.
    """
    if has_code(text):
        return " ".join(text.split())
    # -5 is another number than 5.
    signed = _NEGATIVE.sub("~", text) if "-" in text else text
    if text.isascii():
        key = signed.lower().translate(_SPACED)
    else:
        key = _TRIVIA.sub(" ", unicodedata.normalize("NFKC", signed).casefold())
    return " ".join(key.split()) or " ".join(text.split())


def has_code(text: str) -> bool:
    """Whether some of a text is code."""
    signs = any(sign in text for sign in _CODE_SIGNS)
    return bool((signs and _CODE.search(text)) or _CODE_LINE.search(text))


def has_spaces(text: str) -> bool:
    """Whether most of a text is written with spaces between words."""
    return text.isascii() or len(_UNSPACED.findall(text)) * 2 < len(text)


def units(key: str) -> list[str]:
    """The words of a normalized text, each character one in scripts without spaces."""
    return key.split() if key.isascii() else _UNIT.findall(key)


def shingles(key: str, size: int = 0) -> list[str]:
    """Runs of units of a normalized text; all of it if it is shorter than one run."""
    parts = units(key)
    size = size or (SHINGLE_WORDS if has_spaces(key) else SHINGLE_CHARACTERS)
    if len(parts) <= size:
        return [" ".join(parts)] if parts else []
    return list(map(" ".join, zip(*(parts[i:] for i in range(size)), strict=False)))


def width(key: str) -> int:
    """The length of a text in letters of an alphabet; a character that is a word counts as 3."""
    return len(key) if key.isascii() else len(key) + 2 * len(_UNSPACED.findall(key))
