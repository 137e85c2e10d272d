"""A run on the terminal: live bars on a terminal, plain lines elsewhere, all on stderr."""

import re
import shlex
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from orpo_mlx.cli.streams import printable
from orpo_mlx.events import (
    Evaluated,
    Event,
    Finished,
    Notice,
    PhaseTime,
    Progress,
    RowCounts,
    Saved,
    SettingsChanged,
    Started,
    StepDone,
)

PLAIN_EVERY_SECONDS = 10.0


class _Bars(RichProgress):
    """A bar for every stage that is under way, and below them the facts of the last step."""

    facts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.facts:
            yield Text(self.facts, no_wrap=True, overflow="ellipsis")


class Display:
    """A callback that shows events; with `quiet`, only warnings and the end."""

    def __init__(self, *, quiet: bool = False, bars: bool = True, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet
        terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.on_terminal = terminal and not quiet
        self.live = self.on_terminal and bars
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]} {task.fields[left]}"),
            console=self.console,
            transient=True,
        )
        self._stages: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}  # when a stage began, how far it was
        self._started = self._last_line = time.monotonic()
        self._first_step, self._steps = 0, 0
        self._pauses = 0.0
        self._start_up: list[str] | None = []
        self._paused_at: float | None = None

    def __enter__(self) -> Self:
        if self.live:
            self._bars.start()
            self._show_bar("Loading", 0, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self._bars.stop()

    def log(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def warn(self, text: str | None) -> None:
        if text:
            self._print(f"Warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        # Unwrapped: a command that is shown can be copied.
        self.console.print(printable(text), style=style, markup=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text, warning=True) | SettingsChanged(text=text):
                self.warn(text)
            case Notice(text):
                self.log(text)
            case RowCounts(name, rows):
                self._show_counts(name, rows)
            case Progress(stage, done, total):
                self._show_stage(stage, done, total)
            case PhaseTime(part, seconds):
                if self._start_up is not None:
                    self._start_up.append(f"{part} {seconds:.1f} s")
            case Started():
                self._start(event)
            case StepDone(step, metrics):
                self._log_start_up()
                self._show_step(step, dict(metrics))
            case Evaluated(step, metrics):
                self.log(f"step {step:>5}  {held_out_line(dict(metrics))}")
            case Saved(step, folder):
                self.log(f"step {step:>5}  saved {folder}")
            case Finished():
                self._finish(event)

    def show_printed(self, text: str) -> None:
        """What a library printed in the process that trains: its last line, below the bars."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        now = time.monotonic()
        if not lines:
            return
        if self.live:
            self._bars.facts = printable(lines[-1])
        elif now - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = now
            self.log(lines[-1])

    def _start(self, event: Started) -> None:
        share = 100 * event.trainable / event.parameters
        self.log(
            f"Training {event.trainable:,} of {event.parameters:,} parameters ({share:.2f} %), "
            f"{event.steps:,} step{'s' * (event.steps != 1)}"
            + (f", from step {event.step}." if event.step else ".")
        )
        self._first_step, self._steps = event.step, event.steps
        self._started = self._last_line = time.monotonic()
        self._pauses, self._paused_at = 0.0, None  # those of the start, or of a run that died

    def _show_counts(self, name: str, rows: tuple[tuple[int, str], ...]) -> None:
        kind = "rows" if name == "SFT" else "pairs"
        table = Table(title=f"What became of {name} {kind}", title_justify="left", style="yellow")
        table.add_column(kind, justify="right")
        table.add_column("what", overflow="fold")
        for count, what in rows:
            table.add_row(f"{count:,}", Text(printable(what)))
        self.console.print(table)

    def _log_start_up(self) -> None:
        """Where the time before the first step went, once."""
        if self._start_up:
            self.log(f"Start-up: {', '.join(self._start_up)}.")
        self._start_up = None

    def _finish(self, event: Finished) -> None:
        self._bars.facts = ""
        self._hide_bar("Training")
        if event.stopped:
            self._print(
                f"Stopped after step {event.step}; everything is saved. Continue with: "
                f"orpo-mlx train --resume --output {shlex.quote(str(event.output))}"
            )
        elif self._steps:  # else it was finished before, and no step was left
            self._print(f"Done in {clock(time.monotonic() - self._started)}: {event.output}")

    def _show_stage(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._paused_at is None:
            self._paused_at = now
        left = self._time_left(stage, done, total)
        if self.live:
            self._show_bar(stage, done, total, left)
            if done >= total > 0:
                self._hide_bar(stage)
        elif now - self._last_line > PLAIN_EVERY_SECONDS and done != total:
            self._last_line = now
            count = f"{done:,}" + (f" of {total:,}" if total else "")
            self.log(f"{stage}: {count}" + (f", {left}" if left else ""))
        if done >= total > 0:
            self._pauses += now - self._paused_at
            self._paused_at = None

    def _time_left(self, stage: str, done: int, total: int) -> str:
        """How long a stage will take at its rate so far; "" while that is not known."""
        now = time.monotonic()
        begun, first = self._begun.setdefault(stage, (now, done))
        if done >= total:
            self._begun.pop(stage)
        if not first < done < total or now == begun:
            return ""
        return f"{clock((now - begun) / (done - first) * (total - done))} left"

    def _show_step(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        spent = now - self._started - self._pauses
        seconds = spent / max(step - self._first_step, 1) * (self._steps - step)
        facts, left = step_line(metrics), f"{clock(seconds)} left"
        if self.live:
            self._bars.facts = facts
            self._show_bar("Training", step, self._steps, left)
        elif now - self._last_line > PLAIN_EVERY_SECONDS or step == self._steps:
            self._last_line = now
            self.log(f"step {step:>5}  {facts}  {left}")

    def _show_bar(self, stage: str, done: int, total: int | None, left: str = "") -> None:
        if stage != "Loading":
            self._hide_bar("Loading")
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=total, count="", left="")
        count = f"{done:,}/{total:,}" if total else f"{done:,}" * bool(done)
        self._bars.update(
            self._stages[stage], completed=done, total=total or None, count=count, left=left
        )

    def _hide_bar(self, stage: str) -> None:
        if stage in self._stages:
            self._bars.remove_task(self._stages.pop(stage))


def step_line(metrics: dict[str, float]) -> str:
    """Loss, accuracy, margin, speed and memory of a step in one line; of what it took of pairs
    and SFT rows."""
    if "skipped" in metrics:
        return f"not finite: update left out ({metrics['skipped']:.0f} so far)"
    forms = {
        "loss": "loss {:.3f}",
        "rewards/accuracies": "acc {:.2f}",
        "rewards/margins": "margin {:+.4f}",
        "nll_loss/sft": "SFT {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "peak_memory_gb": "{:.1f} GB",
    }
    return "  ".join(form.format(metrics[n]) for n, form in forms.items() if n in metrics)


def held_out_line(metrics: dict[str, float]) -> str:
    """The main held-out metrics in one line."""
    return (
        f"held-out: loss {metrics['eval_loss']:.3f}  acc {metrics['eval_rewards/accuracies']:.2f}  "
        f"logps chosen {metrics['eval_logps/chosen']:.3f}, "
        f"rejected {metrics['eval_logps/rejected']:.3f}"
    )


def clock(seconds: float) -> str:
    """1:02:03, or 4:05 under an hour."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
