"""checksums.json of a checkpoint: the length and SHA-256 of each of its files, and of itself."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS = "checksums.json"
# Far more than the few files of a checkpoint need.
MOST_BYTES = 100_000


def save_checksums(folder: Path) -> None:
    """Write the checksums of all other files of a folder, after the last of them."""
    others = sorted(file for file in folder.iterdir() if file.name != SUMS)
    files = {file.name: _facts_of(file) for file in others}
    (folder / SUMS).write_text(_render(files), encoding="utf-8")


def has_checksums(folder: Path) -> bool:
    """Whether a checkpoint has them, damaged or not."""
    return (folder / SUMS).exists()


def damage_of(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, a phrase for each that is not as written.

    Each file is read once. Files that checksums.json does not list are not looked at.
    """
    try:
        files = _load(folder / SUMS)
    except OSError as error:
        return [f"{SUMS}: {_reason(error)}"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [f"{SUMS}: its content has changed"]
    problems = ((name, _problem(folder / name, facts)) for name, facts in files.items())
    return [f"{name}: {problem}" for name, problem in problems if problem]


def _problem(file: Path, expected: Mapping[str, Any]) -> str:
    try:
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"{size} bytes instead of {expected['bytes']}"
        same = _facts_of(file) == expected
    except OSError as error:
        return _reason(error)
    return "" if same else "its content has changed"


def _reason(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else str(error.strerror or error)


def _facts_of(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _load(file: Path) -> dict[str, Any]:
    """What the file lists; raises OSError, or ValueError unless it is byte for byte as written."""
    with file.open("rb") as stream:
        content = stream.read(MOST_BYTES)
    files = json.loads(content)["files"]
    if content != _render(files).encode():
        raise ValueError("not as written")
    return files


def _render(files: Mapping[str, Any]) -> str:
    """The file's text. Its own checksum is that of the text without it."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=2, sort_keys=True) + "\n"
