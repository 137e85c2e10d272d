"""`orpo-mlx runs watch`: a run of another process, as it goes."""

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.runs_list import step_text
from orpo_mlx.config.runs import RunsWatchConfig

if TYPE_CHECKING:
    from orpo_mlx.review.runs.follow import Follower
    from orpo_mlx.review.runs.status import RunStatus

LOOK_SECONDS = 1.0


@config_command("watch", RunsWatchConfig)
def command(config: RunsWatchConfig, output: Output) -> None:
    """Follow a run that is going on, from a second terminal.

    It only reads: Ctrl-C ends the watching and leaves the run alone. Where standard output is not a
    terminal, each step is a line.

    \b
    Example:
      orpo-mlx runs watch adapters/mine
    """
    from orpo_mlx.review.runs.follow import Follower
    from orpo_mlx.review.runs.show import check_run
    from orpo_mlx.review.runs.status import status_of

    check_run(config.run)
    follower = Follower(config.run)
    try:
        if sys.stdout.isatty() and not output.as_json:
            _watch_on_screen(config.run, follower)
        else:
            _watch_as_lines(config.run, follower, output)
    except KeyboardInterrupt:
        click.echo(f"Watching ended; the run in {config.run} is left alone.", err=True)
    status = status_of(config.run)
    output.result(status._asdict(), [_headline(status)])


def _watch_as_lines(run: Path, follower: "Follower", output: Output) -> None:
    from orpo_mlx.cli.progress import held_out_line, step_line

    running = True
    while running:
        running = _is_running(run)  # before the file is read: its last rows are then there
        for row in follower.poll():
            if output.as_json or output.quiet:
                continue
            show = held_out_line if "eval_loss" in row else step_line
            click.echo(f"step {int(row['step']):>5}  {show(row)}")
        if running:
            time.sleep(LOOK_SECONDS)


def _watch_on_screen(run: Path, follower: "Follower") -> None:
    from rich.live import Live
    from rich.text import Text

    from orpo_mlx.review.runs.screen import render_screen
    from orpo_mlx.review.runs.status import status_of

    render_screen([], 40, 10)  # the library is there, before the screen is taken
    size, running = (0, 0), True
    with Live(screen=True, auto_refresh=False) as live:
        while running:
            running = _is_running(run)
            new, now = follower.poll(), shutil.get_terminal_size()
            if new or now != size:
                size = (now.columns, now.lines)
                curves = render_screen(follower.rows, now.columns, now.lines - 3)
                head = _headline(status_of(run))
                live.update(Text.from_ansi(f"{head}\n{curves}\nCtrl-C leaves the run alone."))
                live.refresh()
            if running:
                time.sleep(LOOK_SECONDS)


def _is_running(run: Path) -> bool:
    from orpo_mlx.review.runs.status import status_of

    return status_of(run).state == "running"


def _headline(status: "RunStatus") -> str:
    """The run in one line."""
    loss = "" if status.loss is None else f"  loss {status.loss:.3f}"
    accuracy = "" if status.accuracy is None else f"  acc {status.accuracy:.2f}"
    where = " held-out" if status.held_out and loss else ""
    reason = f" ({status.reason})" if status.reason else ""
    step = step_text(status.step, status.steps)
    return f"{status.folder}  {status.state or '-'}{reason}  step {step}{where}{loss}{accuracy}"
