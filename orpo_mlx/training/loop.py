"""The one training loop: ORPO on preference pairs, from settings to a run folder."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx import loading
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pair_facts import count_rows
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Finished, Listeners, Notice, PhaseTime, Started, StepDone
from orpo_mlx.model.lora import count_parameters
from orpo_mlx.run_folder.checkpoints import checkpoint_to_resume
from orpo_mlx.run_folder.folder import SAMPLES, check_output, clear_strays, replacing_run
from orpo_mlx.run_folder.lock import locked
from orpo_mlx.run_folder.room import explain_full_disk, require_room
from orpo_mlx.run_folder.settings import (
    RULES,
    adapter_step_of,
    check_same_run,
    keep_changes,
    load_run_config,
    rules_of,
    save_run_config,
)
from orpo_mlx.run_folder.state import recording
from orpo_mlx.supervisor.signals import PASSED_ON, handled, name_of
from orpo_mlx.training.build import build_run
from orpo_mlx.training.dataset import find_run_sources, load_run_pairs
from orpo_mlx.training.finish import check_best_wanted, finish, is_finished
from orpo_mlx.training.metrics.log import MetricsLog
from orpo_mlx.training.run import Run
from orpo_mlx.training.samples.log import cut_samples
from orpo_mlx.training.samples.prompts import load_sample_prompts
from orpo_mlx.training.samples.sampler import build_sampler
from orpo_mlx.training.trainable import settings_of_adapter

_one_run = threading.Lock()


class RunResult(NamedTuple):
    """Where a run is, how far it came, and the metrics of its adapter (`eval_...`).

    They are those of the last validation up to the step whose adapter the run folder has.
    """

    output: Path
    step: int
    stopped: bool
    metrics: dict[str, float]
    adapter_step: int
    early_stopped: bool  # by --early-stop, a run that has ended


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Train according to `config` and write the run folder; callbacks get every event.

    A callback may raise StopRun: the run is saved and ends, to be resumed. Raises OrpoError for
    whatever the user can fix, before anything is written where that is possible; for a folder that
    another process uses, before anything is read there.
    """
    with locked(config.output, Listeners(callbacks)):
        return train_in_locked_folder(config, callbacks)


def train_in_locked_folder(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> RunResult:
    """`train`, for a caller that holds the lock of the run folder (run_folder/lock.py)."""
    with one_training():
        return _train_alone(config, Listeners(callbacks))


@contextmanager
def one_training() -> Iterator[None]:
    """Raise OrpoError if this process trains already."""
    if not _one_run.acquire(blocking=False):
        raise OrpoError(
            "Another training is under way in this process: MLX's random state and attention are "
            "shared by its threads. Wait for it, or start a process for each."
        )
    try:
        yield
    finally:
        _one_run.release()


def _train_alone(config: TrainConfig, report: Listeners) -> RunResult:
    check_output(config)
    rules = RULES
    if config.resume:
        rules = rules_of(load_run_config(config.output))
        config = check_same_run(config)
        checkpoint_to_resume(config.output, report)
    elif config.adapter:
        config = settings_of_adapter(config)
    run, template, thinking = prepare_run(config, rules, report)
    if config.resume:
        run.restore()
        clear_strays(config.output, run.report)
        if is_finished(run):
            return _nothing_left(run)
        for text in keep_changes(config) if run.step < run.steps else ():
            report(Notice(text))
        with recording(config.output, run.report, step=run.step, steps=run.steps):
            return _go(run, thinking)
    clear_strays(config.output, run.report)
    with replacing_run(config.output):
        save_run_config(config, template.date, thinking, rules=rules)
        with recording(config.output, run.report, step=run.step, steps=run.steps):
            return _go(run, thinking)


def _go(run: Run, thinking: bool) -> RunResult:
    """From the run's step to the end or a stop, and the files that it leaves."""
    config = run.config
    run.report_plan()
    run.report_disk_need()
    run.open_trunk_cache()
    trainable, parameters = count_parameters(run.base.model)
    size = run.plan.micro_batch_size
    run.report(Started(run.step, run.steps, trainable, parameters, size))
    log = run.open_log()
    if not config.resume and (counts := count_rows(run.train)):
        log.write(0, counts)
    cut_samples(config.output / SAMPLES, after_step=run.step)
    with explain_full_disk(config.output):
        with stopped_by_signals(run.report):
            complete = _train(run, log)
        require_room(config.output, "what was trained", run.final_bytes(complete=complete))
        kept = finish(run, thinking=thinking, complete=complete)
    run.report(Finished(run.step, not complete, config.output))
    early, metrics = complete and run.ends_early(), log.evaluation(kept)
    return RunResult(config.output, run.step, not complete, metrics, kept, early)


def _nothing_left(run: Run) -> RunResult:
    """The result of a run that was finished before; its files stay as they are."""
    output, log = run.config.output, run.open_log()
    kept = adapter_step_of(output) or run.step
    run.report(Finished(run.step, False, output))
    return RunResult(output, run.step, False, log.evaluation(kept), kept, run.ends_early())


def _train(run: Run, log: MetricsLog) -> bool:
    """Steps, validations and checkpoints until the end; False if a stop came before it."""
    complete = False
    while True:
        if run.validation_due() and not run.answer_samples():
            break
        if run.validation_due() and log.evaluated_step != run.step and not run.validate(log):
            break
        if run.save_due() and run.saved != run.step:
            run.save()
        complete = run.step == run.steps or run.ends_early()
        if complete or run.report.stop or (done := run.do_step()) is None:
            break
        log.write(run.step, done)
        run.report(StepDone(run.step, done))
        run.warn_early(log)
    if run.saved != run.step:
        run.save()
    return complete


def prepare_run(
    config: TrainConfig, rules: int, report: Listeners
) -> tuple[Run, loading.Template, bool]:
    """Read all input, first what is cheap and may fail, and build the run."""
    sources = find_run_sources(config, report)
    prompts = load_sample_prompts(config.sample_prompts) if config.sample_prompts else []
    started = time.perf_counter()
    base = loading.open_base(config, config.adapter)
    report(PhaseTime("model", time.perf_counter() - started))
    for text in base.notices:
        report(Notice(text))
    template = loading.template_of(config, config.adapter)
    started = time.perf_counter()
    pairs = load_run_pairs(config, sources, base, template, report, rules=rules)
    held_out: Sequence[EncodedPair] = pairs.valid or []
    loading.check_ids(base, pairs.train)
    loading.check_ids(base, held_out)
    valid = held_out[: config.eval_pairs]
    if len(valid) < len(held_out):
        report(Notice(f"Validating on the first {len(valid)} of {len(held_out)} held-out pairs."))
    if not valid:
        check_best_wanted(config)
        report(Notice("No held-out pairs: give some with --valid-data to see what is learned."))
    report(PhaseTime("data", time.perf_counter() - started))
    run = build_run(config, base, pairs.train, valid, report, rules=rules)
    run.sampler = build_sampler(config, prompts, base, template, thinking=pairs.thinking)
    return run, template, pairs.thinking


@contextmanager
def stopped_by_signals(report: Listeners) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end the run after the current micro-batch; a second
    one at once."""

    def ask(number: int, frame: Any) -> None:
        if report.stop:
            raise KeyboardInterrupt
        report.stop = True
        report.reason = name_of(number)
        report(Notice("Stopping after this micro-batch; Ctrl-C again stops at once."))

    with handled(dict.fromkeys(PASSED_ON, ask)):
        yield
