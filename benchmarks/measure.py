"""One workload by all contestants in turn, and what must hold for the comparison to be fair."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.arithmetic import Dimensions, count, count_calls, least_need
from benchmarks.base import WrittenAdapter
from benchmarks.contestants import DoesNotFitError, Worker, fast_blas, memory_limit_bytes
from benchmarks.gradients import gradient_differences
from benchmarks.workloads import Tokens, Workload, count_tokens, draw_pairs
from orpo_mlx.errors import OrpoError

BETA, SCALE, LEARNING_RATE = 0.1, 2.0, 1e-5
PASSES = 3
# Matmul rates of the processes must agree to this; noise of a busy machine gets time to pass.
RATE_TOLERANCE, RATE_TRIES, RATE_PAUSE_SECONDS = 0.1, 25, 0.2
RATES_ALONE = 5  # tries of a process that is measured alone
LAYOUTS = {"fast": "tree", "plain": "padded", "peer": "padded"}
# Losses and gradients of the others are compared with those of this one.
REFERENCE = "fast"
IN_BLOCKS = "_in_blocks.safetensors"

Log = Callable[[str], None]


class BenchSettings(NamedTuple):
    """What all workloads of one run have in common."""

    model: Path
    adapter: WrittenAdapter
    vocabulary: int
    dimensions: Dimensions | None  # None: no arithmetic is counted
    scratch: Path
    pythons: dict[str, str]  # the interpreter of each contestant
    steps: int | None  # timed steps at least; None: PASSES passes
    compiled: bool
    grad_checkpoint: bool
    rank: int


class Contestant:
    """A worker and its results; `failure` is why it has left."""

    def __init__(self, name: str):
        self.name = name
        self.worker: Worker | None = None
        self.facts: dict[str, Any] = {}
        self.rates: list[float] = []  # of float32 matmul in GFLOP/s, one a try
        self.gflops = 0.0
        self.passes: list[float] = []  # seconds a step
        self.cpu_passes: list[float] = []  # processor seconds a step, of all threads
        self.peak_bytes = 0
        self.failure: str | None = None

    def ask(self, do: str, **arguments: str) -> dict[str, Any] | None:
        """The worker's answer; None if it has used too much memory, now or before."""
        if self.worker is None:
            return None
        try:
            return self.worker.ask(do, **arguments)
        except DoesNotFitError as error:
            self.fail(error)
            return None

    def fail(self, error: DoesNotFitError) -> None:
        """Leave the race."""
        self.failure = str(error)
        if self.worker is not None:
            self.peak_bytes = max(self.peak_bytes, self.worker.peak_resident_bytes)
            self.end()

    def end(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def measure_workload(
    name: str, workload: Workload, settings: BenchSettings, log: Log
) -> dict[str, Any]:
    """Results of every contestant on one workload, by name; raises OrpoError if it is not fair.

    Where memory does not suffice for all at once, each is loaded and measured alone.
    """
    pairs = draw_pairs(workload, settings.vocabulary)
    job = _write_job(workload, pairs, settings)
    contestants = _measure(name, workload, settings.pythons, job, settings, log)
    if _crowded(contestants):
        log(f"{name}: memory is short for all tools at once: one at a time")
        contestants = [
            contestant
            for tool, python in settings.pythons.items()
            for contestant in _measure(name, workload, {tool: python}, job, settings, log)
        ]
        if not _rates_agree(contestants):
            raise _unequal_rates(contestants)
    results = {c.name: _result(workload, pairs, c, settings) for c in contestants}
    _compare(results, contestants, settings.scratch)
    return results


def _measure(
    name: str,
    workload: Workload,
    pythons: Mapping[str, str],
    job: Path,
    settings: BenchSettings,
    log: Log,
) -> list[Contestant]:
    """Some contestants, all loaded at once and then taking turns."""
    contestants = [Contestant(n) for n in pythons]
    try:
        _load(name, contestants, job, settings, log)
        _check_alike(contestants, settings)
        if not _crowded(contestants):
            _check_rates(contestants)
            _race(name, workload, contestants, settings, log)
    finally:
        for contestant in contestants:
            contestant.end()
    return contestants


def _load(
    name: str, contestants: Sequence[Contestant], job: Path, settings: BenchSettings, log: Log
) -> None:
    """Start the workers, which share the memory that is free now, and ask for the fixed batch."""
    limit = memory_limit_bytes()
    environment = {} if settings.compiled else {"MLX_DISABLE_COMPILE": "1"}

    def held_by_others(own: Contestant) -> int:
        others = [c.worker for c in contestants if c is not own and c.worker]
        return sum(worker.resident_bytes() for worker in others)

    for contestant in contestants:
        log(f"{name}: {contestant.name} loads")
        python = settings.pythons[contestant.name]
        others = partial(held_by_others, contestant)
        try:
            contestant.worker = Worker(contestant.name, python, job, limit, environment, others)
        except DoesNotFitError as error:
            contestant.fail(error)
        file = str(settings.scratch / f"{contestant.name}.safetensors")
        contestant.facts = contestant.ask("fixed", file=file) or {}
        if _crowded(contestants):
            return


def _crowded(contestants: Sequence[Contestant]) -> bool:
    """Whether one had to leave where others hold memory, too."""
    return len(contestants) > 1 and any(contestant.failure for contestant in contestants)


def _write_job(workload: Workload, pairs: list[Tokens], settings: BenchSettings) -> Path:
    """What the workers read."""
    job = {
        "model": str(settings.model),
        "adapter": str(settings.adapter.file),
        "keys": settings.adapter.keys,
        "num_layers": settings.adapter.num_layers,
        "scratch": str(settings.scratch),
        "pairs": pairs,
        "batch_size": workload.batch_size,
        "beta": BETA,
        "rank": settings.rank,
        "scale": SCALE,
        "learning_rate": LEARNING_RATE,
        "grad_checkpoint": settings.grad_checkpoint,
        "compile": settings.compiled,
        "blas": fast_blas(),
    }
    file = settings.scratch / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    return file


def _check_alike(contestants: Sequence[Contestant], settings: BenchSettings) -> None:
    """Nothing quantized, the same trained parameters, the same use of mx.compile."""
    for contestant in contestants:
        if not contestant.facts:
            continue
        wanted = {
            "quantized": [],
            "trainable": settings.adapter.parameters,
            "compiled": settings.compiled,
            "layout": LAYOUTS[contestant.name],
        }
        facts = {key: contestant.facts[key] for key in wanted}
        if facts != wanted:
            raise OrpoError(f"Not a fair comparison: {contestant.name} has {facts}, not {wanted}.")


def _check_rates(contestants: Sequence[Contestant]) -> None:
    """The matmul rates of the processes, measured in turn: their medians must be nearly the same.

    The best rate would not do: on a machine that slows down, the first to be asked would keep it.
    """
    least = 1 if len(contestants) > 1 else RATES_ALONE
    for number in range(RATE_TRIES):
        if number:
            time.sleep(RATE_PAUSE_SECONDS)
        for contestant in contestants:
            if reply := contestant.ask("rate"):
                contestant.rates.append(reply["gflops"])
                contestant.gflops = statistics.median(contestant.rates)
        if number + 1 >= least and _rates_agree(contestants):
            return
    raise _unequal_rates(contestants)


def _rates_agree(contestants: Sequence[Contestant]) -> bool:
    rates = [c.gflops for c in contestants if not c.failure]
    return not rates or min(rates) >= (1 - RATE_TOLERANCE) * max(rates)


def _unequal_rates(contestants: Sequence[Contestant]) -> OrpoError:
    shown = ", ".join(f"{c.name} {c.gflops:.0f}" for c in contestants)
    return OrpoError(f"Not a fair comparison: float32 matmul rates in GFLOP/s are {shown}.")


def _race(
    name: str,
    workload: Workload,
    contestants: Sequence[Contestant],
    settings: BenchSettings,
    log: Log,
) -> None:
    """A warm-up pass, then timed ones, each by all contestants before the next."""
    steps = len(workload.lengths) // workload.batch_size
    passes = math.ceil(settings.steps / steps) if settings.steps else PASSES
    for number in range(passes + 1):
        # A different one goes first each time, so that other work of the machine affects all.
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            reply = contestant.ask("pass")
            if reply is None:
                return
            seconds = sum(reply["seconds"]) / steps
            what = f"pass {number} of {passes}" if number else "warm-up"
            log(f"{name}: {contestant.name} {what}, {seconds:.2f} s a step")
            contestant.peak_bytes = max(contestant.peak_bytes, reply["peak_bytes"])
            if number:
                contestant.passes.append(seconds)
                contestant.cpu_passes.append(reply["cpu_seconds"] / steps)


def _result(
    workload: Workload, pairs: list[Tokens], contestant: Contestant, settings: BenchSettings
) -> dict[str, Any]:
    """The results of one contestant; what it did not reach is None or missing."""
    steps = len(pairs) // workload.batch_size
    facts = contestant.facts
    entry: dict[str, Any] = {
        "seconds_per_step": None,
        "pairs_per_second": None,
        "peak_memory_gb": contestant.peak_bytes / 1e9,
        "loss": facts.get("loss"),
        "matmul_gflops": contestant.gflops,
    }
    if contestant.failure:
        entry["does_not_fit"] = contestant.failure
    if not facts:
        return entry
    entry |= {
        "compiled": facts["compiled"],
        "kept_trunk": facts["kept_trunk"],
        "trainable_parameters": facts["trainable"],
    }
    least = None
    if settings.dimensions is not None:
        done = count_calls(
            facts["calls"],
            facts["scored"],
            settings.dimensions,
            recomputed=facts["recomputed"],
            kept_trunk=facts["kept_trunk"],
        )
        least = _least(workload, pairs, settings.dimensions, kept_trunk=facts["kept_trunk"])
        entry["gflop_per_step"] = sum(done) / steps / 1e9
        entry["needed_gflop_per_step"] = least / steps / 1e9
    also = ("loss_in_blocks", "version", "recurrence_share")
    entry |= {key: facts[key] for key in also if key in facts}
    if contestant.passes:
        seconds = statistics.median(contestant.passes)
        entry |= {
            "seconds_per_step": seconds,
            "seconds_per_step_spread": [min(contestant.passes), max(contestant.passes)],
            "cpu_seconds_per_step": statistics.median(contestant.cpu_passes),
            "pairs_per_second": workload.batch_size / seconds,
            "tokens_per_second": count_tokens(pairs) / steps / seconds,
            "passes": len(contestant.passes),
        }
        if least is not None:
            entry["matmul_share"] = least / steps / seconds / 1e9 / contestant.gflops
    return entry


def _least(
    workload: Workload, pairs: list[Tokens], dimensions: Dimensions, *, kept_trunk: bool
) -> int:
    """The operations that a pass needs at least, every step's tokens once."""
    total = 0
    for start in range(0, len(pairs), workload.batch_size):
        part = pairs[start : start + workload.batch_size]
        need = least_need(
            [p.prompt for p in part] * 2, [p.chosen for p in part] + [p.rejected for p in part]
        )
        total += sum(count(need, dimensions, kept_trunk=kept_trunk))
    return total


def _compare(results: dict[str, Any], contestants: Sequence[Contestant], scratch: Path) -> None:
    """Ratios against the peer, and how far losses and gradients differ from the fast path's."""
    peer = results.get("peer", {})
    files = {c.name: scratch / f"{c.name}.safetensors" for c in contestants if c.facts}
    for name, entry in results.items():
        for key, ratio in (("seconds_per_step", "time_ratio"), ("gflop_per_step", "gflop_ratio")):
            if peer.get(key) and entry.get(key):
                entry[ratio] = peer[key] / entry[key]
        if peer.get("peak_memory_gb"):
            entry["memory_ratio"] = entry["peak_memory_gb"] / peer["peak_memory_gb"]
        if name == REFERENCE or not {name, REFERENCE} <= files.keys():
            continue
        loss = results[REFERENCE]["loss"]
        entry["loss_difference"] = abs(entry["loss"] - loss)
        entry |= gradient_differences(files[name], files[REFERENCE])
        if name == "peer":
            in_blocks = files[name].with_name(name + IN_BLOCKS)
            entry["loss_difference_in_blocks"] = abs(entry["loss_in_blocks"] - loss)
            for key, value in gradient_differences(in_blocks, files[REFERENCE]).items():
                entry[f"{key}_in_blocks"] = value
