"""Children of supervised runs that meet a fault, each at a given event of its life.

FAULTS_OF_TEST names a folder with faults.json: for each child, by its number from 0, the event at
which it meets its fault, and which. Nothing of this is in the product.
"""

import json
import os
import runpy
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

runpy.run_path(str(Path(__file__).parents[2] / "child_python" / "sitecustomize.py"))

NO_MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)


def fail_at(event: str, step: int, fault: str) -> None:
    """Meet the fault once that event of that step has been sent."""
    from orpo_mlx.supervisor.event_lines import MessagePipe

    send = MessagePipe.__call__

    def send_and_fail(pipe: Any, message: Any) -> None:
        send(pipe, message)
        if type(message).__name__ == event and getattr(message, "step", step) == step:
            meet(fault)

    MessagePipe.__call__ = send_and_fail  # type: ignore[method-assign]


def hurry_while_silent(mark: Path) -> None:
    """In the parent: time flies while a child is silent on purpose, and only then."""
    from orpo_mlx.supervisor import silence, watch

    passed = [0.0]

    def monotonic() -> float:
        passed[0] += silence.LONGEST_TICK * mark.exists()
        return time.monotonic() + passed[0]

    watch.time = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)  # type: ignore[assignment]
    watch.TICK_SECONDS = 0.02


def meet(fault: str) -> None:
    if fault.startswith("parent "):
        os.kill(os.getppid(), getattr(signal, fault.removeprefix("parent ")))
    elif fault == "silence":
        (Path(os.environ["FAULTS_OF_TEST"]) / "silent").touch()
        while True:
            time.sleep(3600)
    elif fault.startswith("record "):
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        kilobytes = status[fault.removeprefix("record ")].split()[0]
        (Path(os.environ["FAULTS_OF_TEST"]) / "record").write_text(kilobytes)
    elif fault.startswith("pause "):
        lives = Path(os.environ["FAULTS_OF_TEST"])
        (lives / fault.removeprefix("pause ")).touch()
        while not (lives / "go").exists():
            time.sleep(0.01)
    elif fault.startswith("await "):
        await_signal(Path(os.environ["FAULTS_OF_TEST"]) / fault.removeprefix("await "))
    elif fault in ("device", "memory"):
        import mlx.core as mx

        def failed() -> None:
            raise RuntimeError(NO_MEMORY if fault == "memory" else "[METAL] Caused GPU Hang Error")

        mx.synchronize = failed
    else:
        os.kill(os.getpid(), getattr(signal, fault))


def await_signal(mark: Path) -> None:
    """Make the mark, and go on once a signal has come, to which the run answers as ever."""
    came = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        before[number](number, frame)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    mark.touch()
    while not came:
        time.sleep(0.01)


if folder := os.environ.get("FAULTS_OF_TEST"):
    if "ORPO_MLX_CHILD" in os.environ:
        lives = Path(folder)
        number = len(list(lives.glob("life-*")))
        (lives / f"life-{number}").write_text(str(os.getpid()))
        faults = json.loads((lives / "faults.json").read_text())
        if number < len(faults):
            fail_at(*faults[number])
    elif "silence" in (Path(folder) / "faults.json").read_text():
        hurry_while_silent(Path(folder) / "silent")
