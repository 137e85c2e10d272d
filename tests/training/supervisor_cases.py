"""The options of a supervised run change what its parent or its child does: a case for each."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.child import run_as_child
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Event, StepDone
from orpo_mlx.supervisor import supervise, watch
from orpo_mlx.supervisor.awake import DisplaySleep
from orpo_mlx.supervisor.enabled import is_supervised
from orpo_mlx.supervisor.event_lines import Result, parse_message
from orpo_mlx.supervisor.handover import Handover, settings_file
from orpo_mlx.supervisor.silence import Silence
from tests import tiny
from tests.training.runs import settings


def config(**changes: Any) -> TrainConfig:
    return settings(Path("base"), Path("pairs.jsonl"), Path("run"), **changes)


def case_supervise(patch: pytest.MonkeyPatch) -> None:
    assert is_supervised(config(supervise=True)) and not is_supervised(config(supervise=False))


def case_hang_minutes(patch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def silence(hang_seconds: float, now: float) -> Silence:
        limits.append(hang_seconds)
        return Silence(hang_seconds, now)

    patch.setattr(watch, "Silence", silence)
    for minutes in (1, 2):
        watch.run_child(
            config(hang_minutes=minutes),
            lambda message: None,
            supervise.Signals(),
            command=["true"],
        )
    assert limits == [60.0, 120.0]


def case_segment_steps(patch: pytest.MonkeyPatch) -> None:
    tiny.save_base(Path("base"))
    tiny.save_pairs(Path("pairs.jsonl"), 8)
    Path("run").mkdir()
    ends = []
    for changes in ({"segment_steps": 2}, {"resume": True, "segment_steps": None}):
        reading, writing = os.pipe()
        lock = os.open("run", os.O_RDONLY)
        with settings_file(config(**changes)) as file:
            status = run_as_child(Handover(os.dup(file), writing, lock))
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            messages = [parse_message(line) for line in pipe]
        [result] = [message for message in messages if isinstance(message, Result)]
        ends.append((status, result.facts["step"], result.stopped, result.segment))
    assert ends == [(130, 2, True, True), (0, 4, False, False)]


def case_cooldown(patch: pytest.MonkeyPatch) -> None:
    """The seconds are slept through, unless a signal comes."""
    now = [0.0]
    patch.setattr(supervise.time, "monotonic", lambda: now[0])
    patch.setattr(supervise.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    for seconds in (0.0, 90.0):
        now[0] = 0.0
        supervise.wait_between(seconds, supervise.Signals())
        assert now[0] == seconds
    signals = supervise.Signals()
    signals.receive(signal.SIGTERM)
    supervise.wait_between(90.0, signals)
    assert now[0] == 90.0


def case_display_sleep(patch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    patch.setattr("orpo_mlx.supervisor.awake._start", lambda *command: started.append(command))
    event: Event = StepDone(1, {})
    for wanted in (False, True):
        given = config(display_sleep=wanted).display_sleep
        DisplaySleep(lambda event: None, wanted=given, platform="darwin")(event)
        assert started == [("pmset", "displaysleepnow")] * wanted


CASES = {
    "supervise": case_supervise,
    "hang_minutes": case_hang_minutes,
    "segment_steps": case_segment_steps,
    "cooldown": case_cooldown,
    "display_sleep": case_display_sleep,
}
