"""Any accepted row to a PreferencePair: prompt messages, chosen and rejected message."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.sources import PREVIEW_HINT, Problem, Row, find_sources, iter_rows
from orpo_mlx.errors import MAX_SHOWN, OrpoError

Message = dict[str, Any]
COLUMNS = ("prompt", "chosen", "rejected")
ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")


class PreferencePair(NamedTuple):
    """One prompt and two answers to it.

    `prompt` is text as it stands in the file, or a list of messages; `chosen` and `rejected` are
    one assistant message each. `extra_messages` counts messages after those answers, cut.
    """

    prompt: str | list[Message]
    chosen: Message
    rejected: Message
    place: str
    tools: list[Any] | None = None
    extra_messages: int = 0
    labels: dict[str, str] = {}  # noqa: RUF012  (immutable by use)

    @property
    def messages(self) -> list[Message]:
        """The prompt as messages."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return self.prompt


def load_pairs(
    sources: str | Path | Sequence[str | Path],
    *,
    splits: Sequence[str] = ("train",),
    flag: str = "--data",
) -> list[PreferencePair]:
    """All pairs of files or folders, in order; raises one OrpoError that names every bad line."""
    if isinstance(sources, str | Path):
        sources = [sources]
    pairs: list[PreferencePair] = []
    problems: list[Problem] = []
    empty = []
    for source in find_sources([str(s) for s in sources], splits=splits, flag=flag):
        before = len(pairs) + len(problems)
        pairs += [pair for row in iter_rows(source, problems) if (pair := read_row(row, problems))]
        if len(pairs) + len(problems) == before:
            empty.append(f"{flag} {source.name}: the file is empty.")
    if problems or empty:
        raise OrpoError("\n".join([*empty, *_bad_lines(problems), PREVIEW_HINT]))
    return pairs


def read_row(row: Row, problems: list[Problem]) -> PreferencePair | None:
    """The pair of a row, or None with every fault of the row in `problems`."""
    values, faults = row.values, []
    missing = [c for c in COLUMNS if values.get(c) is None]
    if missing:
        names = " and ".join(f'"{c}"' for c in missing)
        found = ", ".join(values) or "none"
        faults.append(f"column {names} {'are' if missing[1:] else 'is'} missing (found: {found})")
    for column in COLUMNS:
        if column not in missing:
            faults += _column_faults(column, values[column])
    tools, tool_faults = _tools(values.get("tools"))
    faults += tool_faults
    if not faults:
        chosen, rejected = (_answers(values[c]) for c in COLUMNS[1:])
        shared = _shared(chosen, rejected)
        fault = _parting_fault(chosen[shared:], rejected[shared:])
        if not fault:
            prompt = values["prompt"]
            if not isinstance(prompt, str):
                prompt = [_clean(m) for m in prompt]
            if shared:
                start = PreferencePair(prompt, chosen[0], rejected[0], row.place).messages
                prompt = [*start, *chosen[:shared]]
            labels = {k: v for k, v in values.items() if k not in COLUMNS and isinstance(v, str)}
            extra = len(chosen) + len(rejected) - 2 * (shared + 1)
            answers = chosen[shared], rejected[shared]
            return PreferencePair(prompt, *answers, row.place, tools, extra, labels)
        faults.append(fault)
    problems.extend(Problem(row.place, fault) for fault in faults)
    return None


def _bad_lines(problems: list[Problem]) -> list[str]:
    """A heading, the first problems in full, and the lines of all others."""
    if not problems:
        return []
    lines = list(dict.fromkeys(p.place for p in problems))
    heading = f"{len(lines):,} bad line{'s' * (len(lines) != 1)} in the data:"
    shown = [f"  {p}" for p in problems[:MAX_SHOWN]]
    rest = list(dict.fromkeys(p.place for p in problems[MAX_SHOWN:]))
    if rest:
        shown.append(f"  ... and {len(rest):,} more: {_line_ranges(rest)}")
    return [heading, *shown]


def _line_ranges(places: Iterable[str]) -> str:
    """`a.jsonl:3-5, 9; b.jsonl:1`: places in order, consecutive lines as one range."""
    files: dict[str, list[list[int]]] = {}
    for place in places:
        file, _, number = place.rpartition(":")
        ranges = files.setdefault(file, [])
        if ranges and ranges[-1][1] == int(number) - 1:
            ranges[-1][1] += 1
        else:
            ranges.append([int(number)] * 2)
    return "; ".join(
        f"{file}:" + ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
        for file, ranges in files.items()
    )


def _column_faults(column: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [] if value.strip() else [f'"{column}" is empty']
    if not isinstance(value, list):
        return [f'"{column}" must be text or a list of messages, found {type(value).__name__}']
    if not value:
        return [f'"{column}" is an empty list of messages']
    faults = [f for i, m in enumerate(value) for f in _message_faults(f"{column}[{i}]", m)]
    if not faults and column != "prompt" and value[0]["role"] != "assistant":
        return [
            f'"{column}" must begin with the assistant\'s message, found role '
            f'"{value[0]["role"]}" (the prompt belongs into "prompt")'
        ]
    return faults


def _message_faults(place: str, message: Any) -> list[str]:
    if not isinstance(message, dict):
        return [
            f'"{place}" must be a message {{"role", "content"}}, found {type(message).__name__}'
        ]
    faults = []
    if message.get("role") not in ROLES:
        faults.append(f'"{place}" has role {message.get("role")!r} (allowed: {", ".join(ROLES)})')
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(map(_names_function, calls)):
        faults.append(f'"{place}" has tool calls that are not {{"function": {{"name": ...}}}}')
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            faults.append(f'"{place}" holds parts that are not text: images and audio are not read')
    elif not isinstance(content, str) and not (content is None and calls):
        faults.append(f'"{place}" has no text in "content"')
    elif message.get("role") == "assistant" and not (content or "").strip() and not calls:
        faults.append(f'"{place}" is an empty answer')
    return faults


def _names_function(call: Any) -> bool:
    function = call.get("function") or call if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _clean(message: Message) -> Message:
    """Without keys that say nothing, text parts joined, tool arguments parsed."""
    message = {
        k: v for k, v in message.items() if v is not None and not (k == "tool_calls" and not v)
    }
    message.setdefault("content", "")
    if isinstance(message["content"], list):
        message["content"] = "".join(str(part.get("text") or "") for part in message["content"])
    if "tool_calls" in message:
        message["tool_calls"] = [_parsed_call(call) for call in message["tool_calls"]]
    return message


def _parsed_call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object: many templates encode text a second time."""
    call = {k: v for k, v in call.items() if v is not None}
    if "function" in call:
        return {**call, "function": _parsed_call(call["function"])}
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # no JSON at all may be what a rejected answer shows
            arguments = json.loads(arguments)
    return {**call, "arguments": arguments}


def _answers(value: str | list[Message]) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return [_clean(message) for message in value]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with: they belong to the prompt."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))


def _parting_fault(chosen: list[Message], rejected: list[Message]) -> str:
    """Why what follows the shared messages is no pair of answers, or nothing."""
    if not chosen and not rejected:
        return '"chosen" and "rejected" are the same'
    for column, own in (("chosen", chosen), ("rejected", rejected)):
        if not own:
            return f'"{column}" ends where the other goes on: both need an answer of their own'
        if own[0]["role"] != "assistant":
            role = own[0]["role"]
            return (
                f'"chosen" and "rejected" part at a message of role "{role}", not the assistant\'s'
            )
    return ""


def _tools(value: Any) -> tuple[list[Any] | None, list[str]]:
    """The tools of a row, given as a list, as JSON text, or as a list of JSON texts."""
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        if isinstance(value, list):
            value = [json.loads(tool) if isinstance(tool, str) else tool for tool in value]
    except ValueError as error:
        return None, [f'"tools" is text but not JSON ({error})']
    if not value:
        return None, []
    if not isinstance(value, list) or not all(map(_names_function, value)):
        return None, ['"tools" must be a list of {"function": {"name": ...}}']
    return [{k: v for k, v in tool.items() if v is not None} for tool in value], []
