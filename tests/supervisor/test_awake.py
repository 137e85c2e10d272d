"""What is asked of a Mac, seen by stand-ins for its programs; when a run names it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_mlx.events import Evaluated, Event, MicroBatchDone, Notice, Started, StepDone
from orpo_mlx.supervisor import slow_steps
from orpo_mlx.supervisor.awake import ON_BATTERY, DisplaySleep, awake
from orpo_mlx.supervisor.slow_steps import SlowSteps, swapped_bytes
from tests.alarm import no_hang

pytestmark = pytest.mark.touchy


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins first on PATH that write how they were called; caffeinate stays, as it does."""
    folder = tmp_path / "programs"
    folder.mkdir()
    bodies = {
        "caffeinate": """mkfifo "$0.fifo"
            echo $$ > "$0.new"
            mv "$0.new" "$0.pid"
            read line < "$0.fifo"
        """,
        "pmset": "",
        "sysctl": 'echo "total = 2048.00M  used = 1012.25M  free = 1035.75M  (encrypted)"',
    }
    for name, body in bodies.items():
        file = folder / name
        file.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "$0.called"\n{body}\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def calls(programs: Path, name: str) -> list[str]:
    file = programs / f"{name}.called"
    return file.read_text().splitlines() if file.exists() else []


def test_a_mac_stays_awake_for_the_time_of_a_run(programs: Path) -> None:
    events: list[Event] = []
    with awake(events.append, platform="darwin"):
        with no_hang():
            while not (programs / "caffeinate.pid").exists():
                time.sleep(0.01)
        pid = int((programs / "caffeinate.pid").read_text())
    assert calls(programs, "caffeinate") == [f"-i -s -w {os.getpid()}"]
    assert events == [Notice(ON_BATTERY)]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_other_systems_are_not_asked(programs: Path) -> None:
    events: list[Event] = []
    with awake(events.append, platform="linux"):
        pass
    display = DisplaySleep(events.append, wanted=True, platform="linux")
    display(StepDone(1, {}))
    assert not events
    assert not list(programs.glob("*.called"))


def test_a_missing_program_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    events: list[Event] = []
    with awake(events.append, platform="darwin"):
        pass
    DisplaySleep(events.append, wanted=True, platform="darwin")(StepDone(1, {}))
    assert [event.warning for event in events if isinstance(event, Notice)] == [True]


def test_the_display_sleeps_at_the_first_step_of_a_run_once(programs: Path) -> None:
    events: list[Event] = []
    display = DisplaySleep(events.append, wanted=True, platform="darwin")
    for event in (Started(0, 9, 1, 1), MicroBatchDone(1, 1, 1)):
        display(event)
    assert not calls(programs, "pmset")
    for step in (1, 2, 3):
        display(StepDone(step, {}))
    assert calls(programs, "pmset") == ["displaysleepnow"]
    assert not events


@pytest.mark.parametrize(("seconds", "named"), [(12.2, True), (11.8, False)])
def test_long_runs_name_the_option_once(seconds: float, named: bool) -> None:
    """104 steps, the first of which takes longer; after the fourth 100 are left."""
    events: list[Event] = []
    times: Iterator[float] = iter([1000 + seconds * n for n in range(20)])
    display = DisplaySleep(events.append, wanted=False, platform="darwin", clock=times.__next__)
    display(Started(0, 104, 1, 1))
    for step in range(1, 11):
        display(StepDone(step, {}))
    assert len(events) == named
    if named:
        assert isinstance(events[0], Notice) and "0.3 hours are left" in events[0].text


def slow_run(seconds: list[float], swaps: list[int | None]) -> list[str]:
    """What is reported of steps that take so long; a validation of an hour is between each two."""
    events: list[Event] = []
    now = [0.0]
    swap = iter(swaps)
    slow = SlowSteps(events.append, swap.__next__, lambda: now[0])
    slow(Started(0, 99, 1, 1))
    for number, step in enumerate(seconds, start=1):
        now[0] += step / 2
        slow(MicroBatchDone(number, 1, 1))
        now[0] += step / 2
        slow(StepDone(number, {}))
        now[0] += 3600
        slow(Evaluated(number, {}))
    return [event.text for event in events if isinstance(event, Notice)]


def test_slow_steps_are_reported_where_swap_has_grown() -> None:
    [text] = slow_run([2.0] * 6 + [7.0], [0, 3_000_000_000])
    assert text.startswith(
        "Step 7 took 7.0 s, 4 times as long as usual, while 3.00 GB went to swap"
    )


def test_slow_steps_alone_and_swap_alone_are_not_reported() -> None:
    assert not slow_run([2.0] * 6 + [7.0, 7.0], [5, 5, 4])  # swap did not grow
    assert not slow_run([2.0] * 6 + [5.9], [0])  # not three times as long
    assert not slow_run([2.0] * 4 + [7.0], [0])  # nothing is usual yet
    assert not slow_run([2.0] * 6 + [7.0], [None])  # nothing is known of swap


def test_growth_is_counted_from_the_last_report() -> None:
    assert len(slow_run([2.0] * 6 + [7.0, 7.0, 7.0], [0, 10, 10, 20])) == 2


def test_swap_is_read_as_the_systems_write_it(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmstat").write_text("pswpin 9\npswpout 3\n")
    monkeypatch.setattr(slow_steps, "_VMSTAT", tmp_path / "vmstat")
    assert swapped_bytes("linux") == 3 * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(slow_steps, "_VMSTAT", tmp_path / "missing")
    assert swapped_bytes("linux") is None
    assert swapped_bytes("darwin") == round(1012.25 * 2**20)
    assert calls(programs, "sysctl") == ["-n vm.swapusage"]
