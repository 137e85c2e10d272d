"""The prompts of --sample-prompts: a text file with one a line, or JSON Lines. Imports no mlx."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.messages import Message, messages_of
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import check_regular

MOST_PROMPTS = 32  # each is answered at each validation


class SamplePrompt(NamedTuple):
    """A prompt as it is in the file, and as messages."""

    location: str
    prompt: str | list[Message]
    messages: list[Message]


def load_sample_prompts(file: Path) -> list[SamplePrompt]:
    """The prompts of a file; raises OrpoError that names all that is wrong with it."""
    check_regular(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OrpoError(f"--sample-prompts {file}: cannot be read ({why}).") from None
    faults: list[str] = []
    read = _json_prompts if file.suffix == ".jsonl" else _text_prompts
    prompts = list(read(file, lines, faults))
    if faults:
        raise collected("--sample-prompts: these lines are not prompts:", faults)
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise OrpoError(
            f"--sample-prompts {file}: must hold 1 to {MOST_PROMPTS} prompts, found {len(prompts)}."
        )
    return prompts


def _text_prompts(file: Path, lines: list[str], faults: list[str]) -> Iterator[SamplePrompt]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages = [{"role": "user", "content": line}]
            yield SamplePrompt(f"{file}:{number}", line, messages)


def _json_prompts(file: Path, lines: list[str], faults: list[str]) -> Iterator[SamplePrompt]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            own_faults: list[str] = []
            column, value = _prompt_in(line, own_faults)
            messages = messages_of(column, value, "user", own_faults) if not own_faults else []
            if not own_faults and (not messages or messages[-1]["role"] == "assistant"):
                own_faults.append(f'"{column}" must end with a message to answer')
            faults += [f"{file}:{number}: {fault}" for fault in own_faults]
            yield SamplePrompt(f"{file}:{number}", value, messages)


def _prompt_in(line: str, faults: list[str]) -> tuple[str, Any]:
    """The column of a row that holds its prompt, and what is in it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        faults.append(f"not JSON ({error})")
        return "", None
    columns = [c for c in ("prompt", "messages") if isinstance(row, dict) and c in row]
    if len(columns) != 1:
        faults.append('must be an object with either "prompt" or "messages"')
        return "", None
    return columns[0], row[columns[0]]
