"""Files and folders that are complete or absent: written elsewhere, then renamed into place."""

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError

MAX_JSON_BYTES = 10_000_000
TRIES = 10
# What a rename meets where another process was faster: a folder is there now, or there no more.
_OTHERS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, renamed onto it when the block ends without an error.

    The block makes a file or a folder there. A folder that is already at `target` is removed
    only when the new one is in its place. Raises OrpoError if `target` cannot be written.
    """
    location = Path(os.path.abspath(target))  # noqa: PTH100  ("." has no name, a link keeps its own)
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=location.parent, prefix=f".{location.name}."
        ) as folder:
            # The suffix stays: mx.save_safetensors appends one to names that lack it.
            made = Path(folder) / location.name
            yield made
            _sync(made)
            _put(made, location, Path(folder) / "replaced")
    except OSError as error:
        raise OrpoError(f"{target} cannot be written: {error.strerror or error}.") from error


def _put(made: Path, target: Path, aside: Path) -> None:
    """Rename `made` onto `target`; what was there comes back if that fails or is broken off.

    Another process may put the same folder there at any moment: the last one stays.
    """
    for left in reversed(range(TRIES)):
        try:
            if made.is_dir() and target.exists():
                target.rename(aside)
            made.replace(target)
            return
        except BaseException as error:
            again = left and isinstance(error, OSError) and error.errno in _OTHERS and made.exists()
            if aside.exists() and not target.exists():
                aside.rename(target)
            elif again and aside.exists():
                remove(aside)
            if not again:
                raise


def check_writable(folder: Path, wanted: Path | None = None) -> None:
    """Raise OrpoError unless files can be made in `folder`, or the folder itself can be made.

    The message calls it `wanted`.
    """
    wanted, parent = wanted or folder, folder
    try:
        str(wanted).encode()
    except UnicodeEncodeError:
        raise OrpoError(f"{str(wanted)!a}: its name is not UTF-8 text. Take another.") from None
    try:
        if wanted.is_symlink() and not wanted.exists():
            raise OrpoError(f"{wanted} is a link to {wanted.readlink()}, which does not exist.")
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise OrpoError(f"{wanted} cannot be written: {parent} is a file.")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OrpoError(
            f"{wanted} cannot be written: no file can be created in {parent} ({error.strerror})."
        ) from None


def check_folder(output: Path) -> None:
    """Raise OrpoError if `output` is a file, or no folder can be made where it is to be."""
    check_writable(output.parent, output)
    if output.exists() and not output.is_dir():
        raise OrpoError(f"--output {output} is a file. Name a folder.")


def check_new_folder(output: Path, *, overwrite: bool) -> None:
    """Raise OrpoError if `output` cannot be written, or is there and was not to be replaced."""
    check_folder(output)
    if is_occupied(output) and not overwrite:
        raise OrpoError(f"{output} exists. Replace it with --overwrite, or name another folder.")


def is_occupied(output: Path) -> bool:
    """Whether it is a folder that holds something."""
    return output.is_dir() and any(output.iterdir())


def check_apart(output: Path, what: str, location: Path) -> None:
    """Raise OrpoError if replacing `output` would remove `location`, which is read."""
    if location.resolve().is_relative_to(output.resolve()):
        raise OrpoError(f"--output {output} holds the {what}. Name another folder.")


def load_json_object(file: Path, name: str = "") -> dict[str, Any]:
    """The JSON object in a small file; raises OrpoError, calling it `name`, if there is none."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("too large")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise OrpoError(f"{name or file} is damaged ({error}).") from None
    return content


def save_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people and programs, other scripts than Latin as they are."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def user_path(text: str | Path) -> Path:
    """A path as a person writes it: `~` is the home folder, `~name` stays where nobody has it."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def name_and_number(text: str, what: str, *, positive: bool = False) -> tuple[str, float]:
    """NAME:NUMBER, the number 1 if there is none; a file whose own name has a colon is that file.

    `what` is what messages call the number. Raises ValueError for one that is not allowed.
    """
    name, colon, written = text.rpartition(":")
    if not colon or user_path(text).exists():
        return text, 1.0
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (positive and number <= 0):
        kind = "positive number" if positive else "number"
        raise ValueError(f"{text}: the {what} after the colon must be a {kind}, found {written!r}")
    return name, number


def check_room(folder: Path, size_bytes: int) -> None:
    """Raise OrpoError if the disk of `folder`, which is there, has no room for so much."""
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise OrpoError(
            f"{size_text(size_bytes)} will be written, but only {size_text(free)} are free. "
            "Make room, or name an --output on another disk."
        )


def size_text(size_bytes: int) -> str:
    """12.3 MB, in units of 1000."""
    size, unit = float(size_bytes), "bytes"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush to the disk: a rename survives a power cut, what it names might not."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
