"""A run of the benchmark: base and adapter written once, then one workload after another."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workloads import WORKLOADS
from orpo_mlx import backend
from orpo_mlx.errors import OrpoError

RANK = 8


class RandomBase(NamedTuple):
    """The kind and size of a model with random weights."""

    kind: str = "llama"
    layers: int = 30
    hidden: int = 576
    vocabulary: int = 49152
    value_heads: int = 4  # of qwen3_5's gated delta layers


# What --base names.
BASES = {
    "llama": RandomBase(),
    "qwen3_5": RandomBase("qwen3_5", layers=8, hidden=512, vocabulary=8192),
}


class BenchOptions(NamedTuple):
    """What a user can choose; `model` is a folder, a Hub id, or the size of a random base."""

    model: str | RandomBase
    workloads: Sequence[str] = tuple(WORKLOADS)
    steps: int | None = None  # at least so many timed steps, in full passes
    contestants: Sequence[str] | None = None  # None: all that there are
    peer_python: str | None = None
    num_layers: int = -1
    grad_checkpoint: bool = False
    compiled: bool = False


def iter_results(
    options: BenchOptions, log: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and results of each workload as it is done.

    Raises OrpoError for an unknown workload, a base that cannot be used or an unfair comparison.
    """
    if unknown := [name for name in options.workloads if name not in WORKLOADS]:
        raise OrpoError(f"--workload {unknown[0]}: allowed are {', '.join(WORKLOADS)}.")
    names = _contestants(options)
    backend.prepare()
    from benchmarks import base, measure

    with tempfile.TemporaryDirectory(prefix="orpo-mlx-bench-") as name:
        scratch = Path(name)
        folder = scratch / "base"
        log("writing the base in float32")
        config = (
            base.write_base(options.model, folder)
            if isinstance(options.model, str)
            else base.write_random_base(options.model, folder)
        )
        adapter = base.write_adapter(
            folder, scratch / "adapter.safetensors", num_layers=options.num_layers, rank=RANK
        )
        settings = measure.BenchSettings(
            folder,
            adapter,
            config["vocab_size"],
            base.dimensions(config, adapter),
            scratch,
            names,
            options.steps,
            options.compiled,
            options.grad_checkpoint,
            RANK,
        )
        for workload in options.workloads:
            yield workload, measure.measure_workload(workload, WORKLOADS[workload], settings, log)


def _contestants(options: BenchOptions) -> dict[str, str]:
    """The contestants and the interpreter of each."""
    interpreters = {"fast": sys.executable, "plain": sys.executable}
    if options.peer_python:
        interpreters["peer"] = options.peer_python
    for name in options.contestants or ():
        if name == "peer" and not options.peer_python:
            raise OrpoError("--contestant peer needs --peer-python.")
        if name not in interpreters:
            raise OrpoError(f"--contestant {name}: allowed are fast, plain, peer.")
    return {n: p for n, p in interpreters.items() if n in (options.contestants or interpreters)}
