"""The lock of a run folder: one process writes there, however many read."""

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.files import LOCK
from orpo_mlx.run_folder.lock import check_free, holder, inherited, is_held, locked
from tests.alarm import HANG_SECONDS
from tests.training.runs import notices

pytestmark = pytest.mark.touchy

# Holds the lock of a folder until its input ends; prints a line when it has it.
HOLDER = """
import sys
from pathlib import Path
from orpo_mlx.run_folder.lock import locked
with locked(Path(sys.argv[1]), print):
    print("locked", flush=True)
    sys.stdin.read()
"""
# Lives until its input ends, with whatever descriptors it was given.
SLEEPER = "import sys; print('up', flush=True); sys.stdin.read()"


def silent(event: Event) -> None:
    pass


@contextmanager
def child(program: str, *arguments: str, fds: tuple[int, ...] = ()) -> Iterator[Any]:
    """A Python process that has printed its first line."""
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=fds) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()
            process.wait(HANG_SECONDS)


def refusal(folder: Path) -> str:
    with pytest.raises(OrpoError) as caught, locked(folder, silent):
        pass
    return str(caught.value)


def test_a_held_folder_is_refused_with_its_holder_and_free_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with child(HOLDER, str(folder)) as process:
        inode = (folder / LOCK).stat().st_ino
        who = holder(folder)
        assert who is not None
        assert (who.pid, who.host) == (process.pid, platform.node())
        assert refusal(folder) == (
            f"{folder} is in use by process {process.pid} on {who.host} since {who.started}: wait "
            "for it, stop it, or take another folder."
        )
        with pytest.raises(OrpoError, match="is in use by process"):
            check_free(folder)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(HANG_SECONDS)
        assert holder(folder) is None
        check_free(folder)
        with locked(folder, silent):
            assert (folder / LOCK).stat().st_ino == inode
            assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()


def test_one_process_cannot_lock_a_folder_twice(tmp_path: Path) -> None:
    with locked(tmp_path, silent):
        assert f"in use by process {os.getpid()} on " in refusal(tmp_path)
    with locked(tmp_path, silent):
        assert is_held(tmp_path)
    assert is_held(tmp_path) is False


def test_a_childs_descriptor_keeps_the_lock_when_its_parent_lets_go(tmp_path: Path) -> None:
    with locked(tmp_path, silent) as held:
        process = child(SLEEPER, fds=(held.fd,))
        sleeper = process.__enter__()
    assert is_held(tmp_path)
    sleeper.stdin.close()
    sleeper.wait(HANG_SECONDS)
    assert is_held(tmp_path) is False
    process.__exit__(None, None, None)


def test_an_inherited_lock_is_not_passed_on(tmp_path: Path) -> None:
    with locked(tmp_path, silent) as held:
        copy = os.dup(held.fd)
    os.set_inheritable(copy, True)
    with inherited(tmp_path, copy):
        assert is_held(tmp_path)
        assert not os.get_inheritable(copy)
    assert is_held(tmp_path) is False


@pytest.mark.parametrize("start", ["subprocess", "all descriptors", "fork", "spawn"])
def test_workers_do_not_keep_the_lock(tmp_path: Path, start: str) -> None:
    """Of a process that holds it and starts one in each way, what lives on has no lock."""
    program = f"""
import multiprocessing, os, subprocess, sys
from pathlib import Path
from orpo_mlx.run_folder.lock import locked

def work(ready):
    ready.send(os.getpid())
    ready.recv()

if __name__ == "__main__":
    with locked(Path({str(tmp_path)!r}), print):
        if {start!r} in ("fork", "spawn"):
            context = multiprocessing.get_context({start!r})
            here, there = context.Pipe()
            context.Process(target=work, args=(there,)).start()
            pid = here.recv()
        else:
            sleep = [sys.executable, "-c", {SLEEPER!r}]
            whole = {start!r} == "subprocess"
            pipe = subprocess.PIPE
            worker = subprocess.Popen(sleep, stdin=pipe, stdout=pipe, close_fds=whole)
            worker.stdout.readline()
            pid = worker.pid
        print(pid, flush=True)
        sys.stdin.read()
"""
    file = tmp_path / "program.py"
    file.write_text(program)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(file)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert is_held(tmp_path)
        # Stopped, so that it cannot end with its parent before it is looked at.
        os.kill(worker, signal.SIGSTOP)
        process.kill()
        process.wait(HANG_SECONDS)
        assert is_held(tmp_path) is False
        os.kill(worker, 0)
        os.kill(worker, signal.SIGKILL)


def test_readers_in_a_loop_never_make_a_writer_fail(tmp_path: Path) -> None:
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            is_held(tmp_path)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(200):
            with locked(tmp_path, silent):
                pass
    finally:
        over.set()
        for reader in readers:
            reader.join()


def test_a_reader_that_looks_is_waited_for_and_a_holder_is_not(tmp_path: Path) -> None:
    """Whoever shares the lock looks at it for a moment; the first pause is where it goes."""
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as looking, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(looking, fcntl.LOCK_SH)
        pauses = list[float]()

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            fcntl.flock(looking, fcntl.LOCK_UN)

        patch.setattr(time, "sleep", pause)
        with locked(tmp_path, silent):
            assert len(pauses) == 1
            assert refusal(tmp_path)
            assert len(pauses) == 1


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_a_disk_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    events = list[Event]()
    with locked(tmp_path, events.append):
        assert is_held(tmp_path) is None
        assert holder(tmp_path) is None
        check_free(tmp_path)
    [warning] = notices(events, warning=True)
    assert warning.startswith(f"{tmp_path} is on a disk without file locks (")
    assert len(events) == 1


def test_a_folder_that_nothing_was_put_into_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "run", silent):
        assert (tmp_path / "new" / "run" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty", silent):
        pass
    assert (tmp_path / "empty" / LOCK).exists()
    with locked(tmp_path / "new" / "run", silent):
        (tmp_path / "new" / "run" / "file").touch()
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [LOCK, "file"]


@pytest.mark.parametrize("then", ["nothing", "another folder"])
def test_a_lock_of_a_folder_that_went_meanwhile_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A second process opens `.lock`; the first removes the folder before it can lock the file."""
    folder, opened = tmp_path / "run", list[int]()
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        if not opened:
            (folder / LOCK).unlink()
            folder.rmdir()
            if then == "another folder":
                folder.mkdir()
                (folder / LOCK).touch()
        opened.append(fd)
        flock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with locked(folder, silent) as held:
            assert os.path.samestat(os.fstat(held.fd), (folder / LOCK).stat())
            assert is_held(folder)
    assert len(opened) > 1


def test_an_unreadable_lock_is_still_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path, silent):
        (tmp_path / LOCK).write_bytes(b"{")
        assert refusal(tmp_path).startswith(f"{tmp_path} is in use by another process: ")


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file").endswith("is a file. Name a folder.")
    assert "cannot be written" in refusal(tmp_path / "file" / "run")
