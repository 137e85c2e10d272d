import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from orpo_mlx.cli.progress import Display, clock, step_line
from orpo_mlx.events import Event, Finished, Notice, Progress, RowCounts, Saved, Started, StepDone

METRICS = {
    "loss": 1.234,
    "rewards/accuracies": 0.75,
    "rewards/margins": 0.0123,
    "tokens_per_second": 12345.6,
    "peak_memory_gb": 3.21,
}
FACTS = "loss 1.234  acc 0.75  margin +0.0123  12,346 tokens/s  3.2 GB"
EVENTS: list[Event] = [
    Notice("A notice."),
    Notice("A warning.", warning=True),
    Progress("Tokenizing", 200, 200),
    Started(0, 1000, 10, 1000),
    StepDone(1, METRICS),
    Saved(1, Path("run/[1]")),
]


def shown(*, terminal: bool, width: int = 80, quiet: bool = False, events: list[Event]) -> str:
    file = io.StringIO()
    # The animation is off in dumb terminals: TERM is set here, not taken from the machine.
    console = Console(
        file=file,
        force_terminal=terminal,
        width=width,
        color_system=None,
        _environ={"TERM": "xterm"},
    )
    with Display(console=console, quiet=quiet) as display:
        for event in events:
            display(event)
        display._bars.refresh() if display.live else None
        return file.getvalue()


def test_a_live_bar_shows_step_loss_speed_memory_and_time_in_80_columns() -> None:
    text = shown(terminal=True, events=EVENTS)
    assert "Training" in text and "1/1,000" in text and " left" in text
    assert FACTS in text


def test_a_step_shows_what_it_took_of_pairs_and_sft_rows() -> None:
    machine = {name: METRICS[name] for name in ("tokens_per_second", "peak_memory_gb")}
    alone = machine | {"loss": 1.5, "nll_loss/sft": 1.25}
    assert step_line(alone) == "loss 1.500  SFT 1.250  12,346 tokens/s  3.2 GB"
    assert step_line(METRICS | {"nll_loss/sft": 1.25}) == FACTS.replace(
        "+0.0123", "+0.0123  SFT 1.250"
    )


def test_nothing_is_wider_than_a_narrow_terminal() -> None:
    text = shown(terminal=True, width=40, events=EVENTS[2:5])
    lines = [line.split("\x1b")[0] for line in text.replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= 80
    assert FACTS[:30] in text


def test_elsewhere_than_on_a_terminal_lines_are_plain() -> None:
    last = StepDone(1000, METRICS)
    text = shown(terminal=False, events=[*EVENTS, last, Finished(1000, False, Path("run"))])
    assert "\x1b" not in text and "\r" not in text
    assert text.splitlines() == [
        "A notice.",
        "Warning: A warning.",
        "Training 10 of 1,000 parameters (1.00 %), 1,000 steps.",
        "step     1  saved run/[1]",
        f"step  1000  {FACTS}  0:00 left",
        "Done in 0:00: run",
    ]


def test_a_stage_shows_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its rate since it was first seen: 20 s for two of ten, eight to come."""
    times = iter([0.0, *(t for t in (0.0, 20.0, 100.0) for _ in range(2))])
    monkeypatch.setattr(
        "orpo_mlx.cli.progress.time", SimpleNamespace(monotonic=lambda: next(times, 100.0))
    )
    events: list[Event] = [Progress("Answers", done, 10) for done in (0, 2, 10)]
    assert shown(terminal=False, events=events).splitlines() == ["Answers: 2 of 10, 1:20 left"]


def test_a_step_whose_update_was_left_out_is_shown() -> None:
    skipped = StepDone(1000, {"skipped": 2.0, "learning_rate": 1e-5})
    text = shown(terminal=False, events=[*EVENTS, skipped])
    assert text.splitlines()[-1] == (
        "step  1000  not finite: update left out (2 so far)  0:00 left"
    )


def test_quiet_leaves_warnings_and_the_end() -> None:
    text = shown(terminal=True, quiet=True, events=[*EVENTS, Finished(1, True, Path("my runs/a"))])
    assert text.splitlines() == [
        "Warning: A warning.",
        "Stopped after step 1; everything is saved. Continue with: orpo-mlx train --resume "
        "--output 'my runs/a'",
    ]


def test_a_run_that_was_finished_before_is_not_reported_as_done() -> None:
    events: list[Event] = [Notice("run is finished."), Finished(4, False, Path("run"))]
    assert shown(terminal=False, events=events).splitlines() == ["run is finished."]


@pytest.mark.touchy
@pytest.mark.parametrize("full", [False, True])
def test_a_run_goes_on_when_its_progress_cannot_be_written(full: bool) -> None:
    """Its reader has left, or the disk of its log is full."""
    code = (
        "from orpo_mlx.cli.progress import Display\n"
        "from orpo_mlx.cli.streams import forgiving_streams\n"
        "with forgiving_streams(), Display() as display:\n"
        "    display.log('one'), display.log('two')\n"
        "print('went on')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    if full:
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"went on\n")


def test_times_are_short() -> None:
    assert [clock(s) for s in (0.4, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_what_became_of_pairs_is_a_table() -> None:
    rows = ((1234, "pair left out: no token is left"), (2, "text that holds [/INST]"))
    text = shown(terminal=False, quiet=True, events=[RowCounts("training", rows)])
    assert "What became of training pairs" in text
    assert "│ 1,234 │ pair left out: no token is left │" in text
    assert "│     2 │ text that holds [/INST]         │" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_line_that_a_library_printed_is_shown(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=80, color_system=None, _environ={"TERM": "xterm"}
    )
    now = iter(range(0, 1000, 11))
    monkeypatch.setattr("orpo_mlx.cli.progress.time", SimpleNamespace(monotonic=now.__next__))
    with Display(console=console) as display:
        display.show_printed("Fetching: 10%\rFetching: 20%\x1b[A\r\n")
        display.show_printed("\n")
        display._bars.refresh() if display.live else None
        text = file.getvalue()
    assert "Fetching: 20%\\x1b[A" in text
    assert "10%" not in text
