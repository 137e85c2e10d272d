"""Adapters into their base: a folder that needs no adapter, written tensor by tensor.

A base keeps its layout: an MLX folder stays one, and a Hugging Face folder keeps its names and
what mlx-lm does not read (vision and audio towers).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.config.interop import FuseConfig
from orpo_mlx.data.pairs.load import PreferencePair, load_pairs
from orpo_mlx.data.reading.sources import name_and_weight
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_apart, check_new_folder, replacing, user_path
from orpo_mlx.interop.checkpoint.origins import trace_parameters
from orpo_mlx.interop.checkpoint.shards import save_shards
from orpo_mlx.interop.checkpoint.sidecar import vocabulary_notices, write_sidecar
from orpo_mlx.interop.checkpoint.transformers_rules import check_as_transformers
from orpo_mlx.interop.fuse.drift import (
    Drift,
    Trial,
    available_memory,
    compute_drift,
    has_merge,
    measure_base,
    measure_fused,
    memory_needed,
    open_trial,
)
from orpo_mlx.interop.fuse.rows import FileTensor, stored_tensors
from orpo_mlx.interop.fuse.tensor_plan import (
    WEIGHT,
    Job,
    ModelLayout,
    direct_edits,
    layout_of,
    plan_jobs,
    same_as_mlx,
    traced_edits,
)
from orpo_mlx.interop.fuse.to_checkpoint import as_checkpoint
from orpo_mlx.interop.fuse.verify import check_weights
from orpo_mlx.interop.fuse.write import Tally, fused_tensors
from orpo_mlx.model.adapters import Adapter, find_base, read_adapter
from orpo_mlx.model.base import load_weights, other_towers, vocabulary_rows
from orpo_mlx.model.stored.fp8 import FP8, SCALE
from orpo_mlx.model.stored.heads import without_copies
from orpo_mlx.model.updates import Update, updates_of
from orpo_mlx.review.held_out import TrainedRun, held_out_pairs
from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.run_folder.lock import check_free
from orpo_mlx.run_folder.settings import load_run_config

SAMPLES = Path(__file__).parents[2] / "data" / "samples" / "test.jsonl"
PAIRS = 32  # to measure what quantizing again costs
FEW = 4  # to see that the model computes what it should
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
MOST_LOST = 0.25  # of the way from base to adapter, in KL: more is warned of
MOST_KL = 0.01  # nats a token that rounding to 16 bits may cost


class Fused(NamedTuple):
    """What was written and how far it is from base + adapter."""

    output: Path
    size_bytes: int
    changed: int  # weights that the adapters changed
    requantized: int  # of them, those quantized again
    survived: float | None  # share of the change that outlived it, by projection
    error: float | None  # what it added, as a share of the change
    checked: int  # weights compared after writing
    drift: Drift | None


class _Plan(NamedTuple):
    folder: Path
    adapters: list[Adapter]
    layout: ModelLayout
    stored: Mapping[str, FileTensor]
    updates: Mapping[str, Sequence[Update]]
    jobs: Mapping[str, Job]

    def changes_names(self, config: FuseConfig) -> bool:
        """Whether a folder in mlx-lm's layout, of nothing but its model, becomes a checkpoint."""
        in_mlx_layout = self.layout.shapes.keys() == self.stored.keys()
        return config.dequantize and (bool(self.layout.packings) or in_mlx_layout)


def fuse(config: FuseConfig, report: Callback = lambda event: None) -> Fused:
    """Write base + adapters to --output; raises OrpoError, and then leaves nothing there."""
    check_free(config.output)
    check_new_folder(config.output, report, overwrite=config.overwrite)
    adapters = [read_adapter(folder) for folder, _ in config.adapters]
    plan = _plan(config, adapters, report)
    tally = Tally()
    cache = mx.set_cache_limit(0)
    try:
        with replacing(config.output) as target:
            target.mkdir()
            size = _write(config, plan, target, tally, report)
            checked = _check(config, plan, target, report) if config.verify else 0
            mx.set_cache_limit(cache)
            drift = _drift(config, plan, target, report)
    finally:
        mx.set_cache_limit(cache)
    repacked = sum(job.repack for job in plan.jobs.values())
    rate = tally.kept / tally.wanted if tally.wanted else None
    error = (tally.error / tally.wanted) ** 0.5 if tally.wanted else None
    return Fused(config.output, size, len(plan.updates), repacked, rate, error, checked, drift)


def _plan(config: FuseConfig, adapters: list[Adapter], report: Callback) -> _Plan:
    name, _, folder = find_base(adapters[0], config.model, config.revision)
    check_apart(config.output, "base", folder)
    for source in config.data:
        check_apart(config.output, "pairs", user_path(name_and_weight(source)[0]))
    for adapter in adapters:
        check_apart(config.output, "adapter", adapter.folder)
    stored = stored_tensors(folder)  # checked before anything else reads it
    updates: dict[str, list[Update]] = {}
    layout = None
    for adapter, (_, share) in zip(adapters, config.adapters, strict=True):
        model, settings, notices = _lazy(folder, name, config)
        if layout is None:
            layout = layout_of(model)
            if towers := other_towers(settings):
                notices.append(f"The {' and '.join(towers)} part stays as it is.")
            for text in notices:
                report(Notice(text))
            for text in vocabulary_notices(adapter.folder, vocabulary_rows(model)):
                report(Notice(text, warning=True))
        for parameter, update in updates_of(model, adapter, share).items():
            updates.setdefault(parameter, []).append(update)
    assert layout is not None
    _refuse_fp8(folder, stored)
    stored = without_copies(stored, layout.shapes)
    needed = [*updates, *(path + WEIGHT for path in layout.packings)]
    if same_as_mlx(layout, stored, needed):
        edits = direct_edits(layout, updates)
    else:
        edits = _traced_edits(folder, settings, stored, updates, layout)
    dtype = TYPES[config.dtype] if config.dtype else None
    jobs = plan_jobs(layout, stored, edits, dequantize=config.dequantize, dtype=dtype)
    return _Plan(folder, adapters, layout, stored, updates, jobs)


def _refuse_fp8(folder: Path, stored: Mapping[str, FileTensor]) -> None:
    """Raise OrpoError for a base whose weights are scaled bytes, which cannot be added to."""
    coded = [n for n, tensor in stored.items() if tensor.dtype == FP8 or n.endswith(SCALE)]
    if coded:
        raise OrpoError(
            f"{folder} stores weights in FP8 ({coded[0]} and {len(coded) - 1} more tensors). "
            "Convert it to an MLX folder first, and give that to --model: "
            f"orpo-mlx convert {folder} --output FOLDER"
        )


def _lazy(
    folder: Path, name: str, config: FuseConfig
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    return load_weights(folder, name, trust_remote_code=config.trust_remote_code, lazy=True)


def _traced_edits(
    folder: Path,
    settings: dict[str, Any],
    stored: Mapping[str, FileTensor],
    updates: Mapping[str, Sequence[Update]],
    layout: ModelLayout,
) -> dict[str, Any]:
    """The edits of a Hugging Face folder; raises OrpoError if a weight is not there as such."""
    origins = trace_parameters(settings, {name: s.tensor for name, s in stored.items()}).origins
    packed = {path + WEIGHT for path in layout.packings}
    if lacking := sorted((updates.keys() - origins.keys()) | packed):
        raise collected(
            f"{folder} does not hold these weights as mlx-lm uses them:",
            [
                *lacking,
                "Convert it to an MLX folder first, and give that to --model: "
                f"orpo-mlx convert {folder} --output FOLDER",
            ],
        )
    return traced_edits(origins, stored, updates)


def _write(config: FuseConfig, plan: _Plan, target: Path, tally: Tally, report: Callback) -> int:
    run, dtype = plan.adapters[0].folder, _written_type(config, plan)
    try:
        tensors = fused_tensors(plan.stored, plan.jobs, tally)
        size = save_shards(target, tensors, layout="pt", report=report)
        write_sidecar(plan.folder, run, target, dequantized=config.dequantize, dtype=dtype)
        if plan.changes_names(config):
            as_checkpoint(target, config.trust_remote_code, report)
    except RuntimeError as error:  # mlx raises it for what it cannot compute
        raise OrpoError(f"{config.output} cannot be written: {error}") from error
    return size


def _written_type(config: FuseConfig, plan: _Plan) -> str | None:
    """The type of the weights for the config, if it changed."""
    if config.dtype or not config.dequantize:
        return config.dtype
    plain = {job.dtype for job in plan.jobs.values() if job.packing}
    return next((name for name, short in TYPES.items() if {short} == plain), None)


def _check(config: FuseConfig, plan: _Plan, target: Path, report: Callback) -> int:
    base, _, _ = _lazy(plan.folder, str(plan.folder), config)
    fused = load_weights(
        target, "the fused model", trust_remote_code=config.trust_remote_code, lazy=True,
        flag="After writing,",
    )[0]  # fmt: skip
    checked = check_weights(base, fused, plan.updates, report)
    check_as_transformers(target, None if plan.changes_names(config) else plan.stored)
    return checked


def _drift(config: FuseConfig, plan: _Plan, target: Path, report: Callback) -> Drift | None:
    """The full models side by side, if memory allows; raises OrpoError if they differ."""
    repacked = any(job.repack for job in plan.jobs.values())
    if not (config.verify or repacked):
        return None
    merged = has_merge(plan.adapters, plan.updates)
    stored_bytes = sum(s.tensor.size_bytes for s in plan.stored.values())
    needed, there = memory_needed(plan.layout, stored_bytes, dequantized=merged), available_memory()
    if needed > there:
        left = "what quantizing again costs is not measured" if repacked else "its logits are not"
        report(
            Notice(
                f"Running the models takes {needed / 1e9:.1f} GB and {there / 1e9:.1f} GB are "
                f"free: each weight was compared, {left}.",
                warning=repacked,
            )
        )
        return None
    run = plan.adapters[0].folder
    pairs = _pairs(config, run, plan.folder, PAIRS if repacked else FEW)
    trial = Trial(pairs, run, config.trust_remote_code, merged)
    try:
        opened, encoded = open_trial(plan.folder, trial, report)
    except OrpoError as error:
        if config.data:
            raise
        reason = str(error).splitlines()[0].rstrip(":.")
        report(
            Notice(f"The models are not compared: {reason}. Name pairs with --data.", warning=True)
        )
        return None
    before, adapted = measure_base(opened, encoded, plan.adapters, plan.updates, report)
    del opened
    mx.clear_cache()
    drift = compute_drift(adapted, before, measure_fused(target, encoded, trial, report))
    if config.verify and not repacked and drift.kl_fused > MOST_KL:
        raise OrpoError(
            f"The fused model is not base + adapter: {drift.kl_fused:.3f} nats a token from it "
            f"(allowed: {MOST_KL}). Nothing was written."
        )
    if repacked and drift.lost > MOST_LOST:
        report(
            Notice(
                f"Quantizing again loses what was learned: the fused model is {drift.kl_fused:.4f} "
                f"nats a token from base + adapter, the base itself {drift.kl_base:.4f}. "
                "--dequantize keeps it.",
                warning=True,
            )
        )
    return drift


def _pairs(config: FuseConfig, run: Path, base: Path, count: int) -> Sequence[PreferencePair]:
    """Held-out pairs: those given, the run's own, or the bundled ones."""
    stored = load_run_config(run) if (run / CONFIG).is_file() else {}
    if pairs := held_out_pairs(TrainedRun(run, stored, base), config.data, count):
        return pairs
    return load_pairs([str(SAMPLES)], splits=("test",))[:count]
