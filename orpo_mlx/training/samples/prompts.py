"""The prompts of --sample-prompts: a text file with one a line, or JSON Lines. Imports no mlx."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.message_parts.tool_calls import tools_of
from orpo_mlx.data.pairs.messages import Message, messages_of, with_system
from orpo_mlx.data.reading.text_file import read_text
from orpo_mlx.errors import OrpoError, collected

MOST_PROMPTS = 32  # each is answered at each validation


class SamplePrompt(NamedTuple):
    """A prompt as it is in the file, and as messages."""

    location: str
    prompt: str | list[Message]
    messages: list[Message]
    tools: list[Any] | None = None


def load_sample_prompts(file: Path) -> list[SamplePrompt]:
    """The prompts of a file; raises OrpoError that names all that is wrong with it."""
    lines = prompt_lines(file, "--sample-prompts")
    faults: list[str] = []
    read = _json_prompts if file.suffix == ".jsonl" else text_prompts
    prompts = list(read(str(file), lines, faults))
    if faults:
        raise collected("--sample-prompts: these lines are not prompts:", faults)
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise OrpoError(
            f"--sample-prompts {file}: must hold 1 to {MOST_PROMPTS} prompts, found {len(prompts)}."
        )
    return prompts


def prompt_lines(file: Path, flag: str) -> list[str]:
    """The lines of a text file; raises OrpoError, with the option that names it, if it has none."""
    return read_text(file, flag).splitlines()


def text_prompts(name: str, lines: list[str], faults: list[str]) -> Iterator[SamplePrompt]:
    """The lines of a file that are not empty, each as what a user asks."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages = [{"role": "user", "content": line}]
            yield SamplePrompt(f"{name}:{number}", line, messages)


def _json_prompts(name: str, lines: list[str], faults: list[str]) -> Iterator[SamplePrompt]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{name}:{number}: not JSON ({error})")
        else:
            yield prompt_of_row(f"{name}:{number}", values, faults)


def prompt_of_row(location: str, values: Any, faults: list[str]) -> SamplePrompt:
    """The prompt in `prompt` or `messages` of a row, with its `system` and `tools`.

    What is wrong goes to `faults`; the prompt must not be used then.
    """
    own_faults: list[str] = []
    column, value = _prompt_in(values, own_faults)
    messages = messages_of(column, value, "user", own_faults) if not own_faults else []
    if not own_faults and (not messages or messages[-1]["role"] == "assistant"):
        own_faults.append(f'"{column}" must end with a message to answer')
    tools = None
    if not own_faults:
        own = with_system("system", values.get("system"), messages, own_faults)
        tools = tools_of(values.get("tools"), own_faults)
        messages, value = own, value if own == messages else own
    faults += [f"{location}: {fault}" for fault in own_faults]
    return SamplePrompt(location, value, messages, tools)


def _prompt_in(values: Any, faults: list[str]) -> tuple[str, Any]:
    """The column of a row that holds its prompt, and what is in it."""
    columns = [c for c in ("prompt", "messages") if isinstance(values, Mapping) and c in values]
    if len(columns) != 1:
        faults.append('must be an object with either "prompt" or "messages"')
        return "", None
    return columns[0], values[columns[0]]
