"""A run of the benchmark: base and adapter written once, then one workload after another."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx import backend
from orpo_mlx.errors import OrpoError
from orpo_mlx.review.benchmark.workloads import WORKLOADS

RANK = 8


class RandomBase(NamedTuple):
    """The size of a llama with random weights."""

    layers: int = 30
    hidden: int = 576
    vocabulary: int = 49152


class Options(NamedTuple):
    """What can be chosen; `model` is a folder, a Hub id, or the size of a random base."""

    model: str | RandomBase
    workloads: Sequence[str] = tuple(WORKLOADS)
    steps: int | None = None  # timed steps at least, in whole passes
    peer_python: str | None = None
    num_layers: int = -1
    grad_checkpoint: bool = False
    compiled: bool = False


def iter_results(
    options: Options, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and results of each workload as it is done.

    Raises OrpoError for an unknown workload, a base that cannot be used or an unfair comparison.
    """
    if unknown := [name for name in options.workloads if name not in WORKLOADS]:
        raise OrpoError(f"--workload {unknown[0]}: allowed are {', '.join(WORKLOADS)}.")
    backend.prepare()
    from orpo_mlx.review.benchmark import base, measure

    with tempfile.TemporaryDirectory(prefix="orpo-mlx-bench-") as name:
        scratch = Path(name)
        folder = scratch / "base"
        say("writing the base in float32")
        config = (
            base.write_base(options.model, folder)
            if isinstance(options.model, str)
            else base.write_random_base(*options.model, folder)
        )
        adapter = base.write_adapter(
            folder, scratch / "adapter.safetensors", num_layers=options.num_layers, rank=RANK
        )
        settings = measure.Settings(
            folder, adapter, base.dimensions(config, adapter), scratch, options.peer_python,
            options.steps, options.compiled, options.grad_checkpoint, RANK,
        )  # fmt: skip
        for workload in options.workloads:
            yield workload, measure.measure(workload, WORKLOADS[workload], settings, say)
