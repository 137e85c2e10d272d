"""Tool calls of messages, and the tools that a row offers, however they are written."""

import json
from contextlib import suppress
from typing import Any

from orpo_mlx.data.pairs.message_parts.content import holds

TOOL_KEYS: tuple[str, ...] = ("tools", "functions")
# How a call names its arguments.
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")


def nested_tools(name: str, value: Any) -> dict[str, Any]:
    """Tools in the object around a column's messages, by where they are."""
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return {}
    return {f"{name}.{key}": value[key] for key in TOOL_KEYS if value.get(key)}


def tools_of(value: Any, faults: list[str], name: str = "tools") -> list[Any] | None:
    """The tools of a row, given as a list, as JSON text, or as a list of JSON texts."""
    if not value:
        return None
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        elif isinstance(value, list):
            value = [_parse_tool(tool) for tool in value]
    except ValueError as error:
        faults.append(f'"{name}" is text but not JSON ({error})')
        return None
    if not value:
        return None
    if not isinstance(value, list) or not all(map(names_function, value)):
        faults.append(f'"{name}" must be a list of {{"function": {{"name": ...}}}}')
        return None
    return list(map(_as_tool, value)) if name.endswith(TOOL_KEYS[1]) else value


def are_functions(value: Any) -> bool:
    """Whether a value is a list of functions, or its JSON."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    return isinstance(value, list) and bool(value) and all(map(names_function, value))


def _parse_tool(tool: Any) -> Any:
    if isinstance(tool, str):
        return json.loads(tool)
    if isinstance(tool, dict) and tool.get("function", tool) is None:
        return {key: value for key, value in tool.items() if key != "function"}
    return tool


def with_called_function(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose `function_call`, the old name, is one of its tool calls."""
    called = message.get("function_call")
    if called is None:
        return message
    if not called or (isinstance(called, dict) and not any(map(holds, called.values()))):
        return {k: v for k, v in message.items() if k != "function_call"}
    calls = parse_calls(called if isinstance(called, str) else json.dumps(called, default=str))
    if not calls:
        return message
    others = {k: v for k, v in message.items() if k != "function_call"}
    if not others.get("tool_calls"):
        return {**others, "tool_calls": calls}
    known = others["tool_calls"]
    repeated = isinstance(known, list) and all(map(names_function, known))
    repeated = repeated and [_function_of(c) for c in known] == [_function_of(c) for c in calls]
    return others if repeated else message


def _function_of(call: dict[str, Any]) -> dict[str, Any]:
    """The name and the arguments of a call, however it is written."""
    parsed = parse_call(call)
    function = parsed.get("function", parsed)
    return {key: function[key] for key in ("name", "arguments")}


def names_function(call: Any) -> bool:
    """Whether a value is a function with its name, or a call of one."""
    function = call.get("function") or call if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def parse_call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object: many templates encode text a second time."""
    call = {k: v for k, v in call.items() if (v if k == "function" else v is not None)}
    if "function" in call:
        return {**call, "function": parse_call(call["function"])}
    written = next((key for key in ARGUMENT_KEYS if key in call), "arguments")
    arguments = call.get(written, {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # a rejected answer may show text that is not JSON
            arguments = json.loads(arguments)
    call = {"arguments" if key == written else key: value for key, value in call.items()}
    return {**call, "arguments": arguments}


def parse_calls(text: Any) -> list[dict[str, Any]]:
    """The calls of a text that is JSON of one or several; none if it is not."""
    try:
        calls = json.loads(text)
    except (TypeError, ValueError):
        return []
    calls = calls if isinstance(calls, list) else [calls]
    if not all(map(names_function, calls)):
        return []
    return list(map(_as_tool, calls))


def _as_tool(function: dict[str, Any]) -> dict[str, Any]:
    """A function, or a call of one, in the object that templates read."""
    return function if "function" in function else {"type": "function", "function": function}
