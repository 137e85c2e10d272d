"""One contestant in a process of its own, which JSON lines tell what to do.

Run by path, also in an interpreter that has no orpo_mlx: standard library until a contestant is
loaded. `worker.py JOB.json fast|plain|peer`; each line on stdin is answered by one on stdout.
"""

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

MATMUL_SIZE = 2048


class Contestant(Protocol):
    """What a tool must be able to do."""

    def fixed(self, file: str) -> dict[str, Any]:
        """Facts and the loss of the fixed batch; its adapter gradients go to `file`."""

    def train(self, between: Callable[[list[float], int], None]) -> None:
        """Train forever; `between(seconds of each step, peak bytes)` after each pass blocks."""


class _EndedError(Exception):
    """The driver wants no further pass."""


class _Session:
    """The dialogue with the driver, which continues inside `between` once training has begun."""

    def __init__(self, contestant: Contestant, out: TextIO):
        self._contestant, self._out = contestant, out
        self._cpu_seconds = 0.0  # of this process when the pass began

    def run(self) -> None:
        self.send({"ready": True})
        try:
            self._until_pass()
            self._contestant.train(self._between)
        except _EndedError:
            pass

    def send(self, reply: dict[str, Any]) -> None:
        self._out.write(json.dumps(reply) + "\n")
        self._out.flush()

    def _between(self, seconds: list[float], peak_bytes: int) -> None:
        cpu_seconds = time.process_time() - self._cpu_seconds
        self.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes})
        # Memory that MLX keeps for the next pass would be missing for the others.
        importlib.import_module("mlx.core").clear_cache()
        self._until_pass()

    def _until_pass(self) -> None:
        """Answer until the driver asks for a pass."""
        for line in iter(sys.stdin.readline, ""):
            command = json.loads(line)
            if command["do"] == "pass":
                self._cpu_seconds = time.process_time()
                return
            if command["do"] == "rate":
                self.send({"gflops": backend().matmul_gflops(MATMUL_SIZE, repeats=5)})
            elif command["do"] == "fixed":
                facts = self._contestant.fixed(command["file"])
                self.send(facts | {"compiled": facts["compiled"] and compiles()})
            else:
                break
        raise _EndedError


def backend() -> ModuleType:
    """orpo_mlx/backend.py by its path: it needs the standard library only."""
    return _module("benchmark_backend", Path(__file__).parents[1] / "orpo_mlx" / "backend.py")


def compiles() -> bool:
    """Whether mx.compile does anything: it is silently off without a C++ compiler."""
    mx = importlib.import_module("mlx.core")
    runs = []

    def body(x: Any) -> Any:
        runs.append(x)
        return x + 1

    compiled = mx.compile(body)
    mx.eval(compiled(mx.array(1.0)), compiled(mx.array(2.0)))
    return len(runs) == 1


def _module(name: str, file: Path) -> ModuleType:
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _contestant(kind: str, job: dict[str, Any]) -> Contestant:
    if kind == "peer":
        return _module("benchmark_peer", Path(__file__).with_name("peer.py")).Peer(job)
    # As every command of this project does before it loads MLX.
    importlib.import_module("orpo_mlx.backend").prepare()
    return importlib.import_module("benchmarks.own").Own(job, kind)


def main(job_file: str, kind: str) -> None:
    """Serve one contestant until standard input ends."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # Whatever a library prints goes to stderr: stdout is the dialogue's.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    if job["blas"]:
        ctypes.CDLL(job["blas"], mode=ctypes.RTLD_GLOBAL)
    _Session(_contestant(kind, job), out).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
