"""Workers seen from the driver: processes that are asked, watched, and ended if too large."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from orpo_mlx import backend
from orpo_mlx.errors import OrpoError

WORKER = Path(__file__).with_name("worker.py")
WATCH_SECONDS = 0.2
# Of the memory that was free at the start; the rest keeps the machine from swapping.
MEMORY_SHARE = 0.9


class DoesNotFitError(Exception):
    """A worker took more memory than the machine has; the message states how much."""


class Worker:
    """One contestant's process."""

    def __init__(
        self,
        name: str,
        python: str,
        job: Path,
        limit_bytes: int,
        environment: dict[str, str],
        others: Callable[[], int] = lambda: 0,  # bytes that other workers hold
    ):
        self.name, self._limit, self._others = name, limit_bytes, others
        self.peak_resident_bytes = 0
        self._errors = job.with_name(f"{name}.stderr.txt")
        with self._errors.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [python, str(WORKER), str(job), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", **environment},
            )
        try:
            self._read()
        except (DoesNotFitError, OrpoError):
            self.end()
            raise

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """The worker's answer; raises DoesNotFitError, or OrpoError if it fails otherwise."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self._raise_death()
        return self._read()

    def end(self) -> None:
        """Close the dialogue, at which the worker ends."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # it holds what a dead worker did not read
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        while not select.select([stdout], [], [], WATCH_SECONDS)[0]:
            self._watch()
        line = stdout.readline()
        if not line:
            self._raise_death()
        reply = json.loads(line)
        assert isinstance(reply, dict)
        return reply

    def _watch(self) -> None:
        resident, others = self.resident_bytes(), self._others()
        self.peak_resident_bytes = max(self.peak_resident_bytes, resident)
        if resident + others > self._limit:
            self._process.kill()
            self._process.wait()
            more = f" next to {others / 1e9:.1f} GB of other tools" if others else ""
            raise DoesNotFitError(
                f"ended at {resident / 1e9:.1f} GB{more}, the limit is {self._limit / 1e9:.1f} GB"
            )

    def resident_bytes(self) -> int:
        """Memory that it holds now."""
        return resident_bytes(self._process.pid)

    def _raise_death(self) -> NoReturn:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            raise DoesNotFitError(f"killed at {self.peak_resident_bytes / 1e9:.1f} GB")
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if any("bad_alloc" in line or "Unable to allocate" in line for line in lines[-3:]):
            raise DoesNotFitError(f"out of memory: {lines[-1]}")
        why = "\n".join(lines[-15:]) or f"status {status}"
        raise OrpoError(f"The benchmark's {self.name} worker failed:\n{why}")


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        if sys.platform == "linux":
            return 0
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(done.stdout.strip() or 0) * 1024


def fast_blas() -> str | None:
    """The library that every worker loads before MLX's own BLAS; None where that is not needed."""
    if sys.platform != "linux" or not backend.is_cpu_build():
        return None
    try:
        return str(backend.renamed_openblas())
    except (OSError, subprocess.SubprocessError, ImportError):
        return "libopenblas.so.0"


def memory_limit_bytes() -> int:
    """How much of this machine's memory one worker may use."""
    return int(MEMORY_SHARE * (backend.free_bytes() or backend.total_bytes()))
