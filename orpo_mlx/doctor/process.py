"""All checks in order: the installation first, and what needs mlx in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from orpo_mlx.doctor.install import iter_install_checks
from orpo_mlx.doctor.verdict import FAILED, REPORT, Check, Running

MODULE = "orpo_mlx.doctor.checks"
LIMIT_SECONDS = 240.0  # for one check, which takes 10 on a slow machine
ENVIRONMENT = {
    # Float32 is compared with float32, not with the TF32 of CUDA and of newer Apple GPUs.
    "MLX_ENABLE_TF32": "0",
    # Tiny matrices on several threads take ten times as long where other programs run.
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
CRASHED = f"Close other programs and run the doctor again. {REPORT}"


def iter_checks_apart() -> Iterator[Running | Check]:
    """The checks as they begin and end; after a crash a new process goes on with the next one."""
    with tempfile.TemporaryDirectory(prefix="orpo-mlx-doctor-") as name:
        first: int | None = 0
        while first is not None:
            first = yield from _run(Path(name), first)


def _run(folder: Path, first: int) -> Generator[Running | Check, None, int | None]:
    """One process, from check `first` on; returns where the next process is to go on, or None."""
    errors = folder / "stderr.txt"
    command = [sys.executable, "-m", MODULE, str(folder), str(first)]
    with (
        errors.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env={**os.environ, **ENVIRONMENT},
        ) as process,
    ):
        number, name, ended = first, "imports", True
        try:
            for event in _iter_events(process):
                ended = "status" in event
                if ended:
                    yield Check(**event)
                else:
                    number, name = event["number"], event["name"]
                    yield Running(name)
            status = process.wait()
        finally:
            process.kill()
    if not status and ended:
        return None
    yield Check(name, FAILED, _death(status, errors), CRASHED)
    # If not even the first check finished, no other would.
    return number + 1 if number else None


def _iter_events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """The lines that a process writes, until it ends or takes too long, which ends it."""
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()

    def read(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while line := lines.get(timeout=LIMIT_SECONDS):
            yield json.loads(line)
    except queue.Empty:
        process.send_signal(signal.SIGALRM)
    finally:
        if process.poll() is not None:
            reader.join()


def _death(status: int, errors: Path) -> str:
    """How the process ended, and the last line that it printed."""
    if status == -signal.SIGALRM:
        how = f"not done within {LIMIT_SECONDS:.0f} s"
    elif status < 0:
        how = f"the process ended by {signal.Signals(-status).name}"
    else:
        how = f"the process ended with status {status}"
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{how}: {lines[-1].strip()}" if lines else how


def diagnose() -> Iterator[Running | Check]:
    """The checks as they begin and end."""
    yield from iter_install_checks()
    yield from iter_checks_apart()
