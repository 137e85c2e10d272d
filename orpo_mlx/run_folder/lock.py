"""One process writes in a run folder: it holds a lock on the folder's file `.lock`.

The lock is flock's. It belongs to the open file, so it is free when every process that has the
descriptor has ended, in whatever way, and not before. Who only reads takes no lock. Imports no mlx.
"""

import datetime as dt
import errno
import fcntl
import json
import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import LOCK, check_folder, check_writable, is_occupied, write_error

TRIES = 500
LONGEST_PAUSE = 0.01  # seconds
# What flock answers on disks that have no locks, some network disks among them.
_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}
_open = set[int]()  # this process's descriptors of locks


class Holder(NamedTuple):
    """The process that locked a folder; `pid` is 0 where `.lock` cannot be read."""

    pid: int
    host: str
    started: str  # ISO 8601, when it took the lock


class RunLock(NamedTuple):
    """A lock that this process has. A child that gets `fd` by `pass_fds` has it too."""

    folder: Path
    fd: int


@contextmanager
def locked(folder: Path, report: Callback) -> Iterator[RunLock]:
    """Hold a run folder's lock; raises OrpoError, which names the holder, where that cannot be.

    The folder is made if it is missing, and removed again if nothing was put into it. On a disk
    without locks this is reported once, and the block runs.
    """
    check_folder(folder)
    made = list[Path]()
    try:
        fd = _acquire(folder, made, report)
    except BaseException:
        _remove_folders(made)
        raise
    try:
        yield RunLock(folder, fd)
    finally:
        _remove_empty(folder, fd, made)
        _close(fd)


@contextmanager
def inherited(folder: Path, fd: int) -> Iterator[RunLock]:
    """The lock that a parent process passed on as a descriptor; children do not get it."""
    os.set_inheritable(fd, False)
    _open.add(fd)
    try:
        yield RunLock(folder, fd)
    finally:
        _close(fd)


def holder(folder: Path) -> Holder | None:
    """Who holds a folder's lock; None if it is free, or if that cannot be known."""
    return _read(folder) if is_held(folder) else None


def is_held(folder: Path) -> bool | None:
    """Whether some process holds a folder's lock; None on a disk without locks.

    It shares the lock for a moment, which `locked` waits for.
    """
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        if not _flock(fd, fcntl.LOCK_SH):
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False
    except OSError:
        return None
    finally:
        os.close(fd)


def check_free(folder: Path) -> None:
    """Raise OrpoError, as `locked` does, if a process holds a folder's lock."""
    if is_held(folder):
        raise _refusal(folder)


def _refusal(folder: Path) -> OrpoError:
    pid, host, started = _read(folder)
    who = f"process {pid} on {host} since {started}" if pid else "another process"
    return OrpoError(f"{folder} is in use by {who}: wait for it, stop it, or take another folder.")


def _acquire(folder: Path, made: list[Path], report: Callback) -> int:
    """The descriptor of the locked file; `made` gets the folders that had to be made."""
    for _ in range(TRIES):
        try:
            _make_folders(folder, made)
            fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the process that made the folder has just removed it
        except OSError as error:
            check_writable(folder)
            raise write_error(folder / LOCK, error) from None
        try:
            if not _lock(fd, folder, report):
                raise _refusal(folder)
            if _is_file_of(fd, folder):
                _sign(fd)
                _open.add(fd)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise _refusal(folder)


def _make_folders(folder: Path, made: list[Path]) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir()
            made.append(path)


def _lock(fd: int, folder: Path, report: Callback) -> bool:
    """Lock an open file for this process alone; False if another process has it so."""
    try:
        for _ in range(TRIES):
            if _flock(fd, fcntl.LOCK_EX):
                return True
            if not _flock(fd, fcntl.LOCK_SH):
                return False
            # It can be shared: only readers look at it, each for a moment.
            fcntl.flock(fd, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, LONGEST_PAUSE))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise write_error(folder / LOCK, error) from None
        text = f"{folder} is on a disk without file locks ({error.strerror}): start no second run "
        report(Notice(text + "there, it would not be refused.", warning=True))
        return True
    return False


def _flock(fd: int, operation: int) -> bool:
    """Whether the lock was to be had at once."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file_of(fd: int, folder: Path) -> bool:
    """Whether an open `.lock` is still the folder's: only a holder may have replaced it."""
    try:
        return os.path.samestat(os.fstat(fd), (folder / LOCK).stat())
    except OSError:
        return False


def _sign(fd: int) -> None:
    started = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    values = {"pid": os.getpid(), "host": platform.node(), "started": started}
    line = json.dumps(values).encode() + b"\n"
    # In one write, and never empty in between: others may be reading it.
    os.pwrite(fd, line, 0)
    os.ftruncate(fd, len(line))


def _read(folder: Path) -> Holder:
    try:
        values = json.loads((folder / LOCK).read_bytes().split(b"\n")[0])
        return Holder(int(values["pid"]), str(values["host"]), str(values["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "", "")


def _remove_empty(folder: Path, fd: int, made: list[Path]) -> None:
    """Remove a folder that was made for the lock and holds nothing else.

    Who has opened its `.lock` meanwhile sees that it is not the folder's any more.
    """
    with suppress(OSError):
        if folder in made and _is_file_of(fd, folder) and not is_occupied(folder):
            (folder / LOCK).unlink()
            _remove_folders(made)


def _remove_folders(made: list[Path]) -> None:
    """Remove those that are empty, the inner ones first."""
    with suppress(OSError):
        for path in reversed(made):
            path.rmdir()


def _close(fd: int) -> None:
    # Not LOCK_UN, which would free the lock of a child that has the descriptor, too.
    _open.discard(fd)
    os.close(fd)


def _close_in_fork() -> None:
    """A forked process, as multiprocessing makes them, must not keep the lock of a dead run."""
    while _open:
        os.close(_open.pop())


os.register_at_fork(after_in_child=_close_in_fork)
