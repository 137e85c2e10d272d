"""One child is watched: one that is stopped is not hung, one that never ends is named."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orpo_mlx.supervisor import watch
from orpo_mlx.supervisor.child import Child
from orpo_mlx.supervisor.signals import Signals
from orpo_mlx.supervisor.watch import ChildStuckError, run_child
from tests.supervisor.conftest import CHILD, Action, done, run_config
from tests.supervisor.terminal import state_of

pytestmark = pytest.mark.touchy


@pytest.fixture
def flying_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that jumps by five seconds at each look, and looks that come at once."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 5
        return now[0]

    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.01)
    return now


def scripted(folder: Path, *life: Action) -> list[str]:
    (folder / "lives.json").write_text(json.dumps([life]))
    return [sys.executable, "-S", str(CHILD), str(folder)]


def pid_of(folder: Path) -> int:
    return int(json.loads((folder / "group.json").read_text())[0])


def test_a_stopped_child_is_waited_for_however_long(
    tmp_path: Path, flying_clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 400 hours by the clock, then somebody lets it go on."""
    look, looks = Child.look, [0]

    def look_and_wake(child: Child) -> None:
        look(child)
        looks[0] += child.stopped
        if child.stopped and looks[0] == 100:
            flying_clock[0] += 400 * 3600
        if child.stopped and looks[0] == 200:
            os.kill(child.pid, signal.SIGCONT)

    monkeypatch.setattr(Child, "look", look_and_wake)
    life = [("kill", signal.SIGSTOP), *done(tmp_path / "run")]
    end = run_child(
        run_config(tmp_path, hang_minutes=10),
        lambda message: None,
        Signals(),
        command=scripted(tmp_path, *life),
    )
    assert looks[0] >= 200
    assert (end.status, end.hung_seconds) == (0, None)


def test_a_child_that_cannot_be_killed_is_named(
    tmp_path: Path, flying_clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "KILL_LOOKS", 2)
    monkeypatch.setattr(Child, "send_to_group", lambda child, number: None)
    with pytest.raises(ChildStuckError, match="not even by SIGKILL: .* Restart the Mac"):
        run_child(
            run_config(tmp_path, hang_minutes=1),
            lambda message: None,
            Signals(),
            command=scripted(tmp_path, ("group", None), ("hang", None)),
        )
    pid = pid_of(tmp_path)
    assert state_of(pid) == "S"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_is_printed_is_handed_on_and_counts_as_a_report(
    tmp_path: Path, flying_clock: list[float]
) -> None:
    texts: list[str] = []
    life = [("print", "Fetching"), ("hang", None)]
    end = run_child(
        run_config(tmp_path, hang_minutes=2),
        lambda message: None,
        Signals(),
        command=scripted(tmp_path, *life),
        printed=texts.append,
    )
    assert texts == ["Fetching\n"]
    assert (end.status, end.words) == (-signal.SIGKILL, "Fetching\n")
    assert end.hung_seconds is not None and end.hung_seconds >= 120


def test_its_own_processes_end_with_a_child(tmp_path: Path) -> None:
    """As the processes that make token ids."""
    started = "import subprocess, sys; p = subprocess.Popen(['sleep', '1000']); "
    started += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    run_child(
        run_config(tmp_path), lambda message: None, Signals(),
        command=[sys.executable, "-S", "-c", started],
    )  # fmt: skip
    pid = int((tmp_path / "pid").read_text())
    for _ in waits():
        if state_of(pid) in ("", "Z", "X"):
            return
    raise AssertionError("it still runs")


def waits() -> Iterator[None]:
    late = time.monotonic() + 300
    while time.monotonic() < late:
        yield
        time.sleep(0.01)
