"""Keys of messages that only some templates read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS, holds

NOT_WRITTEN = ", which the template does not write"
_KNOWN = {"role", "content", "tool_calls", "tool_call_id", *REASONING_KEYS}
_KNOWN_OF_CALLS = {"id", "type", "index", "function", "name", "arguments"}
_CALLS = "tool_calls."


def extra_keys(message: Message) -> set[str]:
    """Keys that say something more; those of tool calls after `tool_calls.`.

    The name in a tool's answer is that of its call.
    """
    own = message.keys() - _KNOWN
    if own and message["role"] not in ("user", "assistant", "system", "developer"):
        own -= {"name"}
    calls = {key for call in message.get("tool_calls") or () for key in _keys_of_call(call)}
    return {key for key in own if holds(message[key])} | calls


def without_keys(message: Message, keys: set[str]) -> Message:
    """A message without some of its `extra_keys`."""
    bare = {key: value for key, value in message.items() if key not in keys}
    if any(key.startswith(_CALLS) for key in keys) and bare.get("tool_calls"):
        bare["tool_calls"] = [_bare_call(call, keys) for call in bare["tool_calls"]]
    return bare


def _keys_of_call(call: dict[str, Any]) -> Iterator[str]:
    for part in (call, call.get("function") or {}):
        yield from (_CALLS + k for k, v in part.items() if k not in _KNOWN_OF_CALLS and holds(v))


def _bare_call(call: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    bare = {key: value for key, value in call.items() if _CALLS + key not in keys}
    return bare | {"function": _bare_call(bare["function"], keys)} if "function" in bare else bare


def unread_notes(messages: Iterable[Message], keys: Iterable[str]) -> Counter[str]:
    """How often messages hold keys that are not written."""
    return Counter(
        f'"{key}" of a message ({message["role"]}){NOT_WRITTEN}'
        for message in messages
        for key in sorted(extra_keys(message) & set(keys))
    )
