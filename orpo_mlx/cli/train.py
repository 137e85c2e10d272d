"""`orpo-mlx train`: settings in, a run folder out."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.flags import given_flags, settings_from
from orpo_mlx.cli.settings import Layer
from orpo_mlx.config.groups import RunOptions
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError

if TYPE_CHECKING:
    from orpo_mlx.events import Callback
    from orpo_mlx.sinks.feed import Sink
    from orpo_mlx.supervisor.supervise import RunEnd
    from orpo_mlx.training.loop import RunResult

C = TypeVar("C", bound=RunOptions)


def _settings(flags: dict[str, Any]) -> TrainConfig:
    """Flags over file over defaults; with --resume all over the run's own settings."""
    file: Layer | None = flags["config_file"]
    given = {**(file.values if file else {}), **given_flags(TrainConfig, flags)}
    stored = None
    if given.get("resume") is True:
        if not given.get("output"):
            raise OrpoError("--resume: name the run's folder with --output.")
        from pathlib import Path

        from orpo_mlx.run_folder.folder import CONFIG
        from orpo_mlx.run_folder.lock import check_free
        from orpo_mlx.run_folder.settings import load_run_config

        output = Path(str(given["output"]))
        check_free(output)
        stored = Layer(str(output / CONFIG), load_run_config(output))
    return settings_from(TrainConfig, flags, stored)


@config_command("train", TrainConfig, read=_settings)
def command(config: TrainConfig, output: Output) -> int:
    """Train an adapter on preference pairs with ORPO.

    \b
    Example:
      orpo-mlx train --model ./base --data pairs.jsonl --output adapters/mine
    """
    from orpo_mlx.supervisor.enabled import is_supervised
    from orpo_mlx.supervisor.signals import interrupting

    supervised = is_supervised(config)
    config = ask_if_exists(config)
    with (
        interrupting(),
        output.progress(mlx=not supervised) as display,
        _watched(config, display) as callbacks,
    ):
        if supervised:
            outcome = _supervised(config, callbacks, display.show_printed)
        else:
            outcome = _here(config, callbacks)
    if outcome.words:
        click.echo(outcome.words, err=True, nl=False)
    if outcome.facts:
        output.result(outcome.facts, [])
    return outcome.status


@contextmanager
def _watched(config: TrainConfig, display: "Callback") -> Iterator["list[Callback]"]:
    """The callbacks of a run, while this machine is kept awake for it."""
    from orpo_mlx.supervisor.awake import DisplaySleep, awake
    from orpo_mlx.supervisor.slow_steps import SlowSteps, swapped_bytes

    platform = sys.platform
    sleep = DisplaySleep(display, wanted=config.display_sleep, platform=platform)
    slow = SlowSteps(display, lambda: swapped_bytes(platform))
    with awake(display, platform=platform), _sinks(config, display) as sinks:
        yield [display, sleep, slow, *sinks]


def _sinks(config: TrainConfig, display: "Callback") -> "AbstractContextManager[list[Sink]]":
    """The sinks of --log-to; without one, nothing that they load is loaded."""
    if not config.log_to:
        return nullcontext([])
    from orpo_mlx.sinks.attach import sinks_for

    return sinks_for(config, display)


def _here(config: TrainConfig, callbacks: "list[Callback]") -> "RunEnd":
    """Train in this process."""
    started = time.perf_counter()
    from orpo_mlx.events import PhaseTime
    from orpo_mlx.supervisor.supervise import RunEnd
    from orpo_mlx.training.loop import train

    for callback in callbacks:
        callback(PhaseTime("imports", time.perf_counter() - started))
    result = train(config, callbacks)
    return RunEnd(130 if result.stopped else 0, run_facts(result))


def _supervised(
    config: TrainConfig, callbacks: "list[Callback]", printed: Callable[[str], None]
) -> "RunEnd":
    """Train in children, and hold the run folder's lock for all of them."""
    from orpo_mlx.events import Listeners
    from orpo_mlx.run_folder.lock import locked
    from orpo_mlx.supervisor.supervise import supervise

    with locked(config.output, Listeners(callbacks)) as lock:
        return supervise(config, callbacks, lock=lock.fd, printed=printed)


def run_facts(result: "RunResult") -> dict[str, Any]:
    """What `--json` prints of a run."""
    names = ("output", "step", "stopped", "adapter_step", "early_stopped")
    facts = {name: getattr(result, name) for name in names}
    return facts | {"output": str(result.output)} | result.metrics


def ask_if_exists(config: C) -> C:
    """On a terminal, ask what to do with a run folder that exists; elsewhere leave it to train.

    Raises OrpoError, without a question, if another process uses it.
    """
    from orpo_mlx.run_folder.folder import holds_run
    from orpo_mlx.run_folder.lock import check_free

    output = config.output
    check_free(output)
    on_terminal = all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if config.overwrite or config.resume or not on_terminal or not holds_run(output):
        return config
    answer = click.prompt(
        f"{output} exists. Replace it, resume it, or stop?",
        type=click.Choice(["replace", "resume", "stop"]),
        default="stop",
        err=True,
    )
    if answer == "stop":
        raise OrpoError(f"{output} is left as it was.")
    return config.model_copy(update={"overwrite" if answer == "replace" else "resume": True})
