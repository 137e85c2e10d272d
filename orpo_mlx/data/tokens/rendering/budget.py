"""What one text of a chat template may take, and the sizes of what is made on the way to it."""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

from orpo_mlx.errors import OrpoError

MAX_TURNS = 1_000_000  # of loops; a call counts as one
MAX_CHARACTERS = 4_000_000  # of one text, as of any value on the way to it
# Of all values on the way: one that grows in a loop is copied at every turn.
MAX_COPIED = 100 * MAX_CHARACTERS
LARGE = 10_000  # what is smaller is not counted among the copies: turns bound it
PIECE = 200  # the same of what waits to be joined
SHORT = 1_000  # a list up to this length counts as a whole, even if a loop ends early
SOME = 50  # texts that are joined before the result is looked at
SIZED = (str, bytes, list, tuple, dict)
TEXTS = (str, bytes)
_WIDE = re.compile(rf"\d{{{len(str(MAX_CHARACTERS))},}}")


class TooLongError(TemplateRuntimeError):
    """The text, or a value on the way to it, is too long."""

    def __init__(self) -> None:
        super().__init__(f"it writes more than {MAX_CHARACTERS / 1e6:g} MB for one text")


class _Spent(threading.local):
    turns = 0
    copied = 0


_spent = _Spent()


def begin_text() -> None:
    """Count from zero: another text begins in this thread."""
    _spent.turns = _spent.copied = 0


def count_turns(count: int = 1) -> None:
    _spent.turns = turns = _spent.turns + count
    if turns > MAX_TURNS:
        raise OrpoError(
            f"The chat template takes more than {MAX_TURNS:,} turns of its loops for one text. "
            "Give another with --chat-template FILE."
        )


def counted_turns(values: Any) -> Any:
    """What a loop runs over, its turns counted."""
    if type(values) in SIZED and len(values) <= SHORT:
        count_turns(len(values))
        return values
    return counted_items(values)


def counted_items(values: Iterable[Any]) -> Iterator[Any]:
    """The values one by one; what a filter makes of a list is not held before it is looked at."""
    for value in values:
        count_turns()
        if isinstance(value, TEXTS) and len(value) > PIECE:
            spend(len(value))
        yield value


def spend(size: int) -> None:
    """Allow for a value of some size, which is made or about to be."""
    _spent.copied = copied = _spent.copied + size
    if size > MAX_CHARACTERS or copied > MAX_COPIED:
        raise TooLongError


def keep(value: Any) -> Any:
    """A value that was made, if it is not too large."""
    if isinstance(value, TEXTS):
        if len(value) > LARGE:
            spend(len(value))
    elif isinstance(value, SIZED):
        spend(estimate_size(value))
    return value


def estimate_size(value: Any, room: int = MAX_CHARACTERS) -> int:
    """About the characters of a value as text, found without writing it."""
    if isinstance(value, TEXTS):
        return len(value)
    if not isinstance(value, list | tuple | Mapping):
        return 20
    size = 2
    for item in value.items() if isinstance(value, Mapping) else value:
        size += 2 + estimate_size(item, room - size)
        if size > room:
            raise TooLongError
    return size


def kept_text(value: Any) -> str:
    text = str(value)
    spend(len(text))
    return text


def join_texts(parts: Iterable[Any]) -> str:
    return concat([part if type(part) is str else kept_text(part) for part in parts])


def concat(parts: Iterable[str]) -> str:
    """The texts as one, which grows by a few at a time."""
    pieces = iter(parts)
    kept = list(islice(pieces, SOME))
    if len(kept) < SOME:
        return text if len(text := "".join(kept)) < LARGE else keep(text)
    size = sum(map(len, kept))
    while some := list(islice(pieces, SOME)):
        size += sum(map(len, some)) + 1
        if size > MAX_CHARACTERS:
            raise TooLongError
        kept += some
    spend(size)
    return "".join(kept)


def check_format(text: str, sign: str, computed: bool, values: Any) -> None:
    """Raise unless a text with the values in its fields is small."""
    if _WIDE.search(text) or (computed and has_wide(values)):
        raise TooLongError
    if text.count(sign) > 1:
        spend(len(text) + text.count(sign) * estimate_size(values))


def has_wide(values: Any) -> bool:
    values = values.values() if isinstance(values, Mapping) else values
    values = values if isinstance(values, Iterable) else [values]
    return any(isinstance(value, int) and value > MAX_CHARACTERS for value in values)


def replaced_size(text: Any, old: Any, new: Any) -> int:
    return len(text) + text.count(old) * len(new)


def _indented(value: Any, given: list[Any]) -> int:
    widths = [len(g) if isinstance(g, str) else int(g) for g in given]
    return (1 + str(value).count("\n")) * max(widths)


def _wrapped(value: Any, given: list[Any]) -> int:
    return len(str(value)) * max([1, *(len(g) for g in given if isinstance(g, str))])


def _joined(value: Any, given: list[Any]) -> int:
    if not isinstance(value, list | tuple | Mapping):
        return 0
    return estimate_size(value) + len(value) * max(len(str(g)) for g in given)


def _json(value: Any, given: list[Any]) -> int:
    try:
        size = len(json.dumps(value))
    except (TypeError, ValueError):
        return 0  # the filter will refuse it
    widths = [len(g) if isinstance(g, str) else int(g or 0) for g in given]
    return size if size < LARGE else size * (1 + max(widths) * _depth(value) // 4)


def _depth(value: Any) -> int:
    if not isinstance(value, list | tuple | Mapping):
        return 0
    inner = value.values() if isinstance(value, Mapping) else value
    return 1 + max(map(_depth, inner), default=0)


def _percent(value: Any, given: list[Any]) -> int:
    check_format(str(value), "%", "*" in str(value), given)
    return 0


GROWN: dict[str, Callable[[Any, list[Any]], int]] = {
    "indent": _indented,
    "wordwrap": _wrapped,
    "replace": lambda value, given: replaced_size(str(value), *map(str, given[:2])),
    "join": _joined,
    "tojson": _json,
    "format": _percent,
}
