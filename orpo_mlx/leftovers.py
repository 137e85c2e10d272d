"""Hidden folders in which outputs are made, each with its writer: what a killed one left is
recognized, and put back or removed."""

import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

WRITER, REPLACED = "writer.json", "replaced"
# Version 0.1 left no writer: what nobody has touched for so long is nobody's.
UNSIGNED_SECONDS = 24 * 3600
MADE_BY_US = {WRITER, REPLACED, "lines"}
LONGEST = 200  # bytes of a target's name in that of its folder: a file system allows 255


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, signed by this process."""
    folder = _signed_folder(target)
    try:
        yield folder
    finally:
        _remove(folder)


def _signed_folder(target: Path) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
        try:
            (folder / WRITER).write_text(json.dumps(_signature()) + "\n", encoding="utf-8")
            return folder
        except FileNotFoundError:
            continue  # empty, it passed for one that a killed command left
        except OSError:
            _remove(folder)
            raise


def _remove(folder: Path) -> None:
    """Remove a folder as far as that is allowed, its signature last."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != WRITER:
                path.unlink(missing_ok=True)
        (folder / WRITER).unlink(missing_ok=True)
        folder.rmdir()


def settle_leftovers(target: Path) -> list[str]:
    """Put back or remove what killed commands left next to `target`; a sentence for each."""
    done = []
    for folder in leftovers_of(target):
        writer = _writer_of(folder)
        by = f"process {writer['pid']}, {writer['time']}" if writer else "it did not sign"
        if (folder / REPLACED).exists() and not os.path.lexists(target):
            with suppress(OSError):  # another command was faster
                (folder / REPLACED).rename(target)
                done.append(f"{target} is back: a command that replaced it was killed ({by}).")
        _remove(folder)
        done.append(f"Removed {folder}, which a killed command left ({by}).")
    return done


def leftovers_of(target: Path) -> list[Path]:
    """The folders of killed commands that were making `target`."""
    try:
        names = sorted(entry.name for entry in os.scandir(target.parent) if entry.is_dir())
    except OSError:
        return []
    pattern = re.compile(re.escape(_prefix(target)) + r"\w{8}")  # as tempfile names them
    folders = [target.parent / name for name in names if pattern.fullmatch(name)]
    return [folder for folder in folders if is_left(folder, target.name)]


def is_left(folder: Path, name: str) -> bool:
    """Whether the process that was making `name` in a folder is no more."""
    if writer := _writer_of(folder):
        here = writer.get("host") == _host()
        return here and _start_of(writer.get("pid")) != writer.get("process_started")
    try:
        parts = list(folder.iterdir())
        newest = max(path.stat().st_mtime for path in (folder, *parts))
    except OSError:
        return False
    ours = {part.name for part in parts} <= {*MADE_BY_US, name}
    return ours and (not parts or newest < time.time() - UNSIGNED_SECONDS)


def is_busy(folder: Path) -> bool:
    """Whether somebody is still making something in a folder."""
    return bool(_writer_of(folder)) and not is_left(folder, "")


def _prefix(target: Path) -> str:
    return f".{os.fsencode(target.name)[:LONGEST].decode(errors='ignore')}."


def _signature() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": _host(),
        "process_started": _start_of(os.getpid()),
        "time": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _writer_of(folder: Path) -> dict[str, Any]:
    """Who made a folder; empty where it does not say."""
    try:
        writer = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return writer if writer.keys() >= {"pid", "time"} else {}
    except (OSError, ValueError, AttributeError):
        return {}


@cache
def _host() -> str:
    """This machine; containers of one machine have process ids of their own."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    return platform.node()


def _start_of(pid: Any) -> str | None:
    """When a process started, in the system's words; None if there is no such process."""
    if not isinstance(pid, int):
        return None
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # After the name, which is in brackets and may hold anything: state ... start in ticks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
