"""What a run changes between its children: memory, segments, and the state of its folder."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import (
    Event,
    Finished,
    Notice,
    SettingsChanged,
    Started,
)
from orpo_mlx.run_folder.state import RunState, save_state
from orpo_mlx.supervisor import supervise as supervise_module
from orpo_mlx.supervisor.supervise import RunEnd
from tests.supervisor.conftest import (
    Action,
    Supervised,
    done,
    failed,
    saved,
    started,
    steps,
    texts,
)

pytestmark = pytest.mark.touchy

Run = Callable[..., Supervised]
NO_MEMORY = "[METAL] Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)"
STORED = "model: base\ndata: [pairs.jsonl]\nrank: 4\n"
STATE = RunState("running", "", 0, 10, "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00")


def test_a_run_out_of_memory_keeps_less_and_then_computes_less_at_once(
    supervised: Run, output: Path
) -> None:
    lack = failed(NO_MEMORY, 75)
    lives = [
        [started(0), *saved(2, output), *lack],
        [started(2), *lack],
        [started(2), *lack],
        [started(2, 2), *lack],
        [started(2, 1), *steps(3, 10), *done(output)],
    ]
    run = supervised(*lives, batch_size=4)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0
    chosen = [
        {n: s[n] for n in ("grad_checkpoint", "micro_batch_size") if n in s} for s in run.settings
    ]
    both = {"grad_checkpoint": True}
    assert chosen == [{}, {}, both, both | {"micro_batch_size": 2}, both | {"micro_batch_size": 1}]
    changes = [event for event in run.events if isinstance(event, SettingsChanged)]
    assert [event.settings for event in changes] == [
        {"grad_checkpoint": True},
        {"micro_batch_size": 2},
        {"micro_batch_size": 1},
    ]
    assert all(event.step == 2 for event in changes)
    assert "the pairs, steps and masks are the same" in changes[0].text
    assert "rounded in another order, and with --dropout the masks are others" in changes[1].text


def test_where_nothing_is_left_to_change_it_says_what_to_try(supervised: Run, output: Path) -> None:
    lack = failed(NO_MEMORY, 75)
    run = supervised(*[[started(0, 1), *lack]] * 4, grad_checkpoint=True, batch_size=4)
    assert len(run.settings) == 2
    assert isinstance(run.outcome, OrpoError)
    assert "Micro-batches of one pair with --grad-checkpoint took too much" in str(run.outcome)
    assert "--max-seq-length" in str(run.outcome)


def test_a_run_under_older_rules_is_not_cut_smaller(supervised: Run, output: Path) -> None:
    output.mkdir()
    (output / "config.yaml").write_text(f"{STORED}rules: 1\nbatch_size: 4\n")
    lack = failed(NO_MEMORY, 75)
    run = supervised(*[[started(0), *lack]] * 4, resume=True)
    assert [s.get("grad_checkpoint") for s in run.settings] == [None, None, True]
    assert not any("micro_batch_size" in s for s in run.settings)
    assert isinstance(run.outcome, OrpoError) and "not made smaller" in str(run.outcome)


def test_two_bare_kills_count_as_a_lack_of_memory_only_without_a_checkpoint_between(
    supervised: Run, output: Path
) -> None:
    killed = ("kill", signal.SIGKILL)
    lives = [
        [started(0), *saved(2, output), killed],
        [started(2), *saved(4, output), killed],
        [started(4), killed],
        [started(4), *done(output)],
    ]
    run = supervised(*lives)
    assert [s.get("grad_checkpoint") for s in run.settings] == [None, None, None, True]


def test_a_kill_by_the_kernel_for_memory_is_seen_in_its_count(
    supervised: Run, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([5, 5, 5, 6, 6, 6, 6])  # at the start and the end of each child
    monkeypatch.setattr(supervise_module, "oom_kills", lambda: next(counts))
    killed = ("kill", signal.SIGKILL)
    lives = [[*saved(2, output), killed], [*saved(4, output), killed], done(output)]
    run = supervised(*lives)
    assert [s.get("grad_checkpoint") for s in run.settings] == [None, None, True]
    assert any("the system ended it for its memory" in text for text in texts(run.events))


def test_segments_end_and_begin_on_purpose(supervised: Run, output: Path) -> None:
    pause = done(output, step=5, stopped=True, segment=True)
    lives = [[started(0), *steps(1, 6), *saved(5, output), *pause], done(output)]
    run = supervised(*lives, segment_steps=5, cooldown=0.01)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0
    assert [s["segment_steps"] for s in run.settings] == [5, 5]
    assert run.settings[1]["resume"] is True
    assert [event for event in run.events if isinstance(event, Finished)] == [
        Finished(10, False, output)
    ]
    assert texts(run.events) == [
        "A segment of 5 steps ends after step 5; the next one begins in 0.01 s."
    ]


def test_a_signal_during_the_pause_ends_the_run(supervised: Run, output: Path) -> None:
    pause = done(output, step=5, stopped=True, segment=True)

    def press(event: Event) -> None:
        if isinstance(event, Notice):
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, Started):
            output.mkdir(exist_ok=True)
            save_state(output, STATE)

    life = [started(0), *saved(5, output), *pause]
    run = supervised(life, segment_steps=5, cooldown=3600, callback=press)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 130
    assert run.events[-1] == Finished(5, True, output)
    stored = RunState(**json.loads((output / "state.json").read_text()))
    assert (stored.state, stored.reason, stored.step) == ("stopped", "Ctrl-C", 5)


@pytest.mark.parametrize(
    ("lives", "state", "reason"),
    [
        ([[("kill", signal.SIGABRT)]] * 3, "failed", "The training process was ended by SIGABRT"),
        (
            [[("print", "Out of luck."), ("exit", 3)]],
            "failed",
            "The training process ended with status 3 after step 3.",
        ),
        (
            [[("signal parent", signal.SIGTERM), ("await signals", 1), ("kill", signal.SIGKILL)]],
            "interrupted",
            "was ended by SIGKILL",
        ),
    ],
)
def test_the_state_of_a_run_is_written_where_its_child_could_not(
    supervised: Run, output: Path, lives: list[list[Action]], state: str, reason: str
) -> None:
    def begun(event: Event) -> None:
        if isinstance(event, Started):
            output.mkdir(exist_ok=True)
            save_state(output, STATE)

    run = supervised(*[[started(3), *life] for life in lives], callback=begun)
    assert isinstance(run.outcome, OrpoError | KeyboardInterrupt)
    stored = RunState(**json.loads((output / "state.json").read_text()))
    assert (stored.state, stored.step, stored.started) == (state, 3, STATE.started)
    assert stored.reason.startswith(reason) and "printed" not in stored.reason
    assert stored.updated > STATE.updated


def test_an_earlier_runs_state_is_left_as_it_is(supervised: Run, output: Path) -> None:
    output.mkdir()
    (output / "config.yaml").write_text(STORED)
    save_state(output, STATE)
    supervised(*[[("kill", signal.SIGABRT)]] * 3, overwrite=True)
    assert RunState(**json.loads((output / "state.json").read_text())) == STATE


def test_a_pause_is_part_of_a_run_that_is_running(supervised: Run, output: Path) -> None:
    states = []

    def look(event: Event) -> None:
        if isinstance(event, Started):
            output.mkdir(exist_ok=True)
            save_state(output, STATE._replace(state="stopped", reason="--segment-steps"))
        if isinstance(event, Notice):
            states.append(json.loads((output / "state.json").read_text())["state"])

    pause = done(output, step=5, stopped=True, segment=True)
    supervised(
        [started(0), *saved(5, output), *pause], done(output), segment_steps=5, callback=look
    )
    assert states == ["running"]
