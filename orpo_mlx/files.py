"""Files and folders that are complete or absent: written elsewhere, then renamed into place."""

import ctypes
import errno
import fcntl
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from orpo_mlx import leftovers
from orpo_mlx.disk_errors import why_disk_refuses
from orpo_mlx.errors import DiskError, OrpoError
from orpo_mlx.events import Callback, Notice

MAX_JSON_BYTES = 10_000_000
TRIES = 10
LOCK = ".lock"  # of a run folder (run_folder/lock.py); a folder that holds nothing else is empty
_POINTER = b"version https://git-lfs"
# How MLX reports a write.
_UNABLE = re.compile(r"Unable to write (\d+) bytes")
_BLOCK = 65_536  # bytes: what is free may be kept for the system
# Of a file system that cannot sync a folder, or of a folder that may not be opened for that.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM}
# What a rename meets where another process was faster: a folder is there now, or there no more.
_OTHERS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, renamed onto it when the block ends without an error.

    The block makes a file or a folder there. A folder that is already at `target` is removed
    only when the new one is in its place. Raises OrpoError if `target` cannot be written.
    """
    location = _absolute(target)
    try:
        location.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.scratch_folder(location) as folder:
            # The suffix stays: mx.save_safetensors appends one to names that lack it.
            made = folder / location.name
            yield made
            sync_tree(made)
            _put(made, location, folder / leftovers.REPLACED)
            sync_entries(location.parent)
    except DiskError as error:  # of a file in the folder that is being made
        raise write_error(target, error.__cause__ or error) from error
    except OSError as error:
        raise write_error(target, error) from error


def write_error(target: Path, error: BaseException) -> OrpoError:
    """The error for a file or folder that cannot be written; a full disk is a DiskError."""
    if why := why_disk_refuses(error):
        return DiskError(f"{target} cannot be written: {why}.")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OrpoError(f"{target} cannot be written: {reason.rstrip('.')}.")


@contextmanager
def mlx_writes(file: Path) -> Iterator[None]:
    """Turn MLX's error for what it cannot write, which does not say why, into an OSError."""
    try:
        yield
    except RuntimeError as error:
        wanted = _UNABLE.search(str(error))
        free = shutil.disk_usage(_existing(file)).free
        if wanted and free < max(int(wanted[1]), _BLOCK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise OSError(str(error)) from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _put(made: Path, target: Path, aside: Path) -> None:
    """Rename `made` onto `target`; what was there comes back if that fails or is broken off.

    Another process may put the same folder there at any moment: the last one stays.
    """
    for left in reversed(range(TRIES)):
        try:
            if made.is_dir() and target.exists():
                if _exchange(made, target):
                    return
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths, so that both are there at every moment; False where that cannot be done."""
    swap = _system_exchange()
    if swap is None:
        return False
    if swap(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    if (code := ctypes.get_errno()) in _OTHERS:
        raise OSError(code, os.strerror(code), str(other))
    return False


@cache
def _system_exchange() -> Callable[[bytes, bytes], int] | None:
    """The system's call that swaps two paths, if it has one; 0 if that went well."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: int(library.renamex_np(one, other, 2))  # RENAME_SWAP
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here = -100  # AT_FDCWD
        return lambda one, other: int(library.renameat2(here, one, here, other, 2))  # EXCHANGE
    return None


def _absolute(path: Path) -> Path:
    """The full path; "." has no name, and a link keeps its own."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def recover(target: Path, report: Callback) -> None:
    """Put back or remove what killed commands left of `target`, and report it."""
    for text in leftovers.settle_leftovers(_absolute(target)):
        report(Notice(text))


@contextmanager
def temporary_folder(report: Callback) -> Iterator[Path]:
    """A folder for the time of the block, where the system has such; those of killed commands go.

    Raises OrpoError where the system has none.
    """
    try:
        target = Path(tempfile.gettempdir()) / "orpo-mlx"
    except FileNotFoundError as error:
        raise OrpoError(f"{error.strerror}. Set TMPDIR to a folder that can be written.") from None
    recover(target, report)
    with leftovers.scratch_folder(target) as folder:
        yield folder


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
        for path in (wanted, *wanted.parents):
            if path.is_symlink() and not path.exists():
                above = "" if path == wanted else f"{wanted} cannot be written: "
                link = f"{path} is a link to {path.readlink()}, which does not exist."
                raise OrpoError(above + link)
        parent = _existing(parent)
        if not parent.is_dir():
            raise OrpoError(f"{wanted} cannot be written: {parent} is a file.")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        why = why_disk_refuses(error) or error.strerror
        raise OrpoError(
            f"{wanted} cannot be written: no file can be created in {parent} ({why})."
        ) from None


def check_folder(output: Path) -> None:
    """Raise OrpoError if `output` is a file, or no folder can be made where it is to be."""
    check_writable(output.parent, output)
    if output.exists() and not output.is_dir():
        raise OrpoError(f"--output {output} is a file. Name a folder.")


def check_new_folder(output: Path, report: Callback, *, overwrite: bool) -> None:
    """Raise OrpoError if `output` cannot be written, or is there and was not to be replaced.

    What killed commands left of it is put back or removed before.
    """
    check_folder(output)
    recover(output, report)
    if is_occupied(output) and not overwrite:
        raise OrpoError(f"{output} exists. Replace it with --overwrite, or name another folder.")


def is_occupied(output: Path) -> bool:
    """Whether it is a folder that holds something."""
    return output.is_dir() and any(path.name != LOCK for path in output.iterdir())


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


def check_regular(file: Path) -> None:
    """Raise OrpoError for what is not a file (a pipe would be waited for), or not the file itself.

    Git LFS leaves a few lines in the place of a large file that was not fetched.
    """
    if not file.exists() or file.is_dir():
        return  # the reader reports that
    if not file.is_file():
        raise OrpoError(f"{file} is not a file.")
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise OrpoError(
                f"{file} is a Git LFS pointer, not the file itself. Run git lfs pull in its folder."
            )


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


def sync_tree(path: Path) -> None:
    """A file, or a folder with all that is in it: a rename survives a power cut, what it names
    might not. Raises OSError."""
    if not path.is_dir():
        sync_file(path)
        return
    for inner in path.rglob("*"):
        if inner.is_file():
            sync_file(inner)
        elif inner.is_dir():
            sync_entries(inner)
    sync_entries(path)


def sync_file(file: Path) -> None:
    """The content of one file; raises OSError."""
    with file.open("rb") as stream:
        _sync_descriptor(stream.fileno())


def sync_entries(folder: Path) -> None:
    """Which files a folder has, after one was made, renamed or removed there; raises OSError.

    Does nothing where the file system cannot.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync_descriptor(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync_descriptor(descriptor: int) -> None:
    # On macOS fsync hands the data to the drive, which may keep them in its own memory.
    if sys.platform == "darwin":
        with suppress(OSError):  # a file system that cannot, as SQLite treats it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)
