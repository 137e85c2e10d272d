"""The content of a message that is a list of parts: its text, its reasoning, what is not read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Where a message keeps its reasoning.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
TEXT_KEYS = ("text", "value", "content", "refusal")
THOUGHT_TYPES = ("thinking", "reasoning")
THOUGHT_KEYS = (*REASONING_KEYS, *TEXT_KEYS)
ENCRYPTED = "redacted_thinking"
# Spaces of no width are not text either.
_VISIBLE = re.compile(r"[^\s\u200b-\u200f\u2060\ufeff\u00ad]")
_THOUGHT_MARK = re.compile(r"</?think>")
_MEDIA = ("image", "audio", "video", "media", "file")


def part_faults(location: str, parts: Sequence[Any]) -> list[str]:
    """What is wrong with the parts of a content."""
    faults = [f'"{location}" {fault}' for part in parts if (fault := _part_fault(part))]
    kinds = [_is_thought(part) for part in parts if _text_of_part(part)]
    if not faults and kinds != sorted(kinds, reverse=True):
        faults.append(f'"{location}" has reasoning after text: its reasoning must come first')
    return list(dict.fromkeys(faults))


def text_in(content: Any) -> str:
    """A message's text, its parts joined, without reasoning."""
    if isinstance(content, list):
        return "".join(_text_of_part(part) for part in content if not _is_thought(part))
    return content or ""


def is_blank(answer: str) -> bool:
    """Whether an answer is white space, with or without the marks of a thought that is empty."""
    answer = without_thought_marks(answer)
    return not answer or answer.isspace()


def is_invisible(answer: str) -> bool:
    """Whether an answer has no character to see: blank, or but for spaces of no width."""
    return not _VISIBLE.search(without_thought_marks(answer))


def without_thought_marks(text: str) -> str:
    """A text without `<think>` and `</think>`; what is between them stays."""
    return _THOUGHT_MARK.sub("", text) if "think>" in text else text


def thoughts_in(content: Any) -> str:
    """The reasoning in the parts of a content."""
    parts = content if isinstance(content, list) else []
    return "\n\n".join(filter(None, (_text_of_part(part) for part in parts if _is_thought(part))))


def unread_keys(parts: Sequence[Any]) -> Iterator[str]:
    """Keys of parts that say something and are not read."""
    for part in parts:
        if isinstance(part, dict) and part.get("type") == ENCRYPTED:
            yield ENCRYPTED
        elif isinstance(part, dict):
            read = ("type", *(THOUGHT_KEYS if _is_thought(part) else TEXT_KEYS))
            yield from (key for key, value in part.items() if key not in read and holds(value))
            yield from (key for value in _values(part).values() for key in _unread_within(value))


def _unread_within(value: Any) -> Iterator[str]:
    return unread_keys(value) if isinstance(value, list) else iter(())


def holds(value: Any) -> bool:
    """Whether a value says anything: null, an empty text and an empty list do not."""
    return value is not None and value not in ("", [], {})


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in THOUGHT_TYPES


def _values(part: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a part, by key."""
    if part.get("type") == ENCRYPTED:
        return {}
    keys = THOUGHT_KEYS if _is_thought(part) else TEXT_KEYS
    return {key: part[key] for key in keys if key in part}


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    value = next(filter(holds, _values(part).values()), "")
    return text_in(value) if isinstance(value, str | list) else ""


def _part_fault(part: Any) -> str:
    """What is wrong with a part, or nothing."""
    if isinstance(part, str):
        return ""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or any(word in str(kind) for word in _MEDIA):
        return "holds parts that are not text: images and audio are not read"
    if kind not in (None, ENCRYPTED, *TEXT_TYPES, *THOUGHT_TYPES):
        return f'holds a part of type "{kind}", which is not read (read: text, thinking)'
    values = _values(part)
    if not values and kind != ENCRYPTED:
        return f"holds a part without text (its keys: {', '.join(part) or 'none'})"
    texts = {key: value for key, value in values.items() if holds(value)}
    for key, value in texts.items():
        if isinstance(value, list) and not part_faults("", value) and not thoughts_in(value):
            continue
        if not isinstance(value, str):
            return f'holds a part whose "{key}" is not text (found {type(value).__name__})'
    if len({text_in(value) for value in texts.values()}) > 1:
        return f"holds a part with several texts ({', '.join(texts)})"
    return ""
