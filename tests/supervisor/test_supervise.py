"""A run over the lives of its children: what goes on from where, what is reported, what ends it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import (
    Event,
    Finished,
    Notice,
    Saved,
    SettingsChanged,
    Started,
    StepDone,
    StopRun,
)
from orpo_mlx.run_folder.folder import check_output
from orpo_mlx.run_folder.state import RunState, save_state
from orpo_mlx.supervisor import supervise as supervise_module
from orpo_mlx.supervisor.supervise import RunEnd
from tests.supervisor.conftest import (
    Action,
    Supervised,
    done,
    failed,
    run_config,
    saved,
    send,
    started,
    steps,
)

pytestmark = pytest.mark.touchy

Run = Callable[..., Supervised]
NO_MEMORY = "[METAL] Insufficient Memory (kIOGPUCommandBufferCallbackErrorOutOfMemory)"
STORED = "model: base\ndata: [pairs.jsonl]\nrank: 4\n"
STATE = RunState("running", "", 0, 10, "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00")
FAULTS: dict[str, list[Action]] = {
    "SIGKILL": [("kill", signal.SIGKILL)],
    "SIGABRT": [("kill", signal.SIGABRT)],
    "SIGSEGV": [("kill", signal.SIGSEGV)],
    "SIGBUS": [("kill", signal.SIGBUS)],
    "device": failed("Metal ended the work.", 75),
    "silence": [("hang", None)],
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run"


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice | SettingsChanged)]


def test_events_of_a_child_reach_the_callbacks_in_order_and_its_facts_are_the_result(
    supervised: Run, output: Path
) -> None:
    life = [send(Notice("read")), started(0), *steps(1, 4), *saved(3, output), *done(output)]
    run = supervised(life)
    assert run.outcome == RunEnd(0, {"output": str(output), "step": 10, "stopped": False}, "")
    assert run.events == [
        Notice("read"), Started(0, 10, 1, 2, 4),
        *(StepDone(n, {"loss": 1.0, "peak_memory_gb": 0.0}) for n in (1, 2, 3)),
        Saved(3, output / "checkpoints"), Finished(10, False, output),
    ]  # fmt: skip


def test_a_child_gets_the_settings_as_given_and_a_group_of_its_own(
    supervised: Run, output: Path, tmp_path: Path
) -> None:
    life = [("group", None), ("stdin", None), *done(output)]
    run = supervised(life, rank=4, template_date="2026-01-02")
    config = TrainConfig.model_validate(run.settings[0])
    assert config.model_fields_set == {"model", "data", "output", "rank", "template_date"}
    assert (config.rank, config.output) == (4, output)
    own, group, parent = json.loads((tmp_path / "script" / "group.json").read_text())
    assert (group, parent) == (own, os.getpid())
    assert json.loads((tmp_path / "script" / "stdin.json").read_text()) == ""


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_death_the_run_goes_on_from_the_checkpoint_that_it_announced(
    supervised: Run, output: Path, fault: str
) -> None:
    life = [started(0), *steps(1, 6), *saved(5, output), *steps(6, 8), ("print", "Last words.")]
    run = supervised([*life, *FAULTS[fault]], done(output), hang_minutes=0.001, save_every=5)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0
    first, second = run.settings
    assert "resume" not in first
    assert second["resume"] is True and not second.get("overwrite")
    assert (second["rank"], second["save_every"]) == (4, 5)  # of config.yaml, and of this call
    [text] = texts(run.events)
    assert text.startswith("The training process ") and "after step 7. It printed last:" in text
    assert "\n  Last words.\n" in text
    assert text.endswith("Going on from the checkpoint of step 5.")
    [crash] = (output / "crashes").iterdir()
    assert "Last words." in crash.read_text()


@pytest.mark.parametrize("fault", ["SIGKILL", "device"])
def test_before_the_first_checkpoint_the_same_arguments_are_tried_again(
    supervised: Run, output: Path, fault: str
) -> None:
    """A checkpoint that it did not announce is an earlier run's, for all that is known."""
    output.mkdir()
    (output / "config.yaml").write_text("rank: 32\n")
    (output / "checkpoints" / "step-0000050").mkdir(parents=True)
    run = supervised([started(0), *steps(1, 3), *FAULTS[fault]], done(output), overwrite=True)
    assert run.settings[0] == run.settings[1]
    assert run.settings[1]["overwrite"] is True
    assert texts(run.events)[0].endswith("Beginning again: it has written no checkpoint yet.")


def test_what_a_run_left_itself_before_its_first_checkpoint_is_replaced(
    supervised: Run, output: Path
) -> None:
    left = [("write", str(output / "config.yaml")), started(0), ("kill", signal.SIGKILL)]
    run = supervised(left, done(output))
    assert "overwrite" not in run.settings[0]
    assert run.settings[1] == run.settings[0] | {"overwrite": True}


def test_a_folder_that_is_not_to_be_replaced_is_refused_before_a_child_is_started(
    supervised: Run, output: Path
) -> None:
    output.mkdir()
    (output / "config.yaml").write_text("rank: 32\n")
    run = supervised([("kill", signal.SIGKILL)])
    assert isinstance(run.outcome, OrpoError) and "Continue it with --resume" in str(run.outcome)
    assert not run.settings


def test_a_resumed_run_that_dies_at_once_is_resumed_again(supervised: Run, output: Path) -> None:
    output.mkdir()
    (output / "config.yaml").write_text(STORED)
    run = supervised([("kill", signal.SIGKILL)], done(output), resume=True, rank=4)
    assert run.settings[1]["resume"] is True and "overwrite" not in run.settings[1]
    assert texts(run.events)[0].endswith("Going on: it has written no checkpoint yet.")


def test_three_deaths_without_a_checkpoint_between_are_the_end(
    supervised: Run, output: Path
) -> None:
    die = [("print", "Out of luck."), ("kill", signal.SIGABRT)]
    lives = [
        [started(0), *saved(2, output), *die], die,
        [started(2), *saved(4, output), *die], die, die, done(output),
    ]  # fmt: skip
    run = supervised(*lives)
    assert len(run.settings) == 5
    assert isinstance(run.outcome, OrpoError)
    message = str(run.outcome)
    assert "third death without a new checkpoint between" in message
    assert "\n  Out of luck.\n" in message and str(output / "crashes") in message
    assert f"orpo-mlx train --resume --output {output}" in message
    crashes = sorted((output / "crashes").iterdir())
    assert len(crashes) == 5
    assert all("SIGABRT" in c.read_text() and "Out of luck." in c.read_text() for c in crashes)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_run_that_is_given_up_before_its_first_checkpoint_gives_back_what_it_was_to_replace(
    supervised: Run, output: Path, checkpoint: bool
) -> None:
    output.mkdir()
    (output / "adapters.safetensors").write_text("earlier")

    def put_aside(event: Event) -> None:
        if isinstance(event, Started) and not (output / ".replaced").exists():
            (output / ".replaced").mkdir()
            (output / "adapters.safetensors").rename(output / ".replaced" / "adapters.safetensors")
            (output / "config.yaml").write_text(STORED)
            save_state(output, STATE)
            if checkpoint:
                (output / "checkpoints" / "step-0000002").mkdir(parents=True)

    lives: list[list[Action]] = [[started(0), ("kill", signal.SIGABRT)]] * 3
    run = supervised(*lives, callback=put_aside, overwrite=True)
    assert "no more is tried" in str(run.outcome)
    assert len([*(output / "crashes").iterdir()]) == 3
    assert not (output / ".replaced").exists()
    assert (output / "adapters.safetensors").exists() is not checkpoint
    assert (output / "state.json").exists() is checkpoint
    back = f"{output}: the run is back that this one was to replace."
    assert (back in texts(run.events)) is not checkpoint


def test_a_folder_that_holds_only_crashes_is_free(supervised: Run, output: Path) -> None:
    assert isinstance(supervised(*[[("kill", signal.SIGABRT)]] * 3).outcome, OrpoError)
    assert [path.name for path in output.iterdir()] == ["crashes"]
    check_output(run_config(output.parent))


@pytest.mark.parametrize("status", [0, 2, 3, -signal.SIGILL])
def test_other_deaths_are_not_tried_again(supervised: Run, output: Path, status: int) -> None:
    end: Action = ("kill", -status) if status < 0 else ("exit", status)
    run = supervised([started(0), ("print", "Why."), end])
    assert len(run.settings) == 1
    assert isinstance(run.outcome, OrpoError)
    assert "\n  Why.\n" in str(run.outcome)


def test_an_error_that_the_user_can_fix_is_raised_as_it_is(supervised: Run) -> None:
    run = supervised(failed("pairs.jsonl: no such file.", 1))
    assert isinstance(run.outcome, OrpoError)
    assert (str(run.outcome), len(run.settings)) == ("pairs.jsonl: no such file.", 1)


def test_a_traceback_is_handed_on_and_not_tried_again(supervised: Run) -> None:
    run = supervised([("print", "Traceback (most recent call last):\nKeyError: 'x'"), ("exit", 1)])
    assert run.outcome == RunEnd(1, {}, "Traceback (most recent call last):\nKeyError: 'x'\n")
    assert len(run.settings) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_somebody_sent_to_the_child_ends_the_run(
    supervised: Run, output: Path, number: int
) -> None:
    life = [("kill", number), ("await signals", 1), *done(output, step=3, stopped=True)]
    run = supervised([started(0), *life])
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 130
    assert run.events[-1] == Finished(3, True, output)


def test_a_child_that_crashes_after_its_result_has_done_its_work(
    supervised: Run, output: Path
) -> None:
    life = [*done(output)[:-1], ("kill", signal.SIGSEGV)]
    run = supervised(life)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0
    assert not texts(run.events)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_parent_are_passed_on_once_each(
    supervised: Run, output: Path, tmp_path: Path, first: int
) -> None:
    life = [
        ("signal parent", first), ("await signals", 1),
        ("signal parent", signal.SIGINT), ("await signals", 2),
        ("note signals", None), *done(output, step=3, stopped=True),
    ]  # fmt: skip
    before = signal.getsignal(first)
    run = supervised([started(0), *life])
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 130
    assert json.loads((tmp_path / "script" / "signals.json").read_text()) == [first, signal.SIGINT]
    assert signal.getsignal(first) == before


def test_a_hangup_that_was_ignored_stays_so(supervised: Run, output: Path, tmp_path: Path) -> None:
    life = [
        ("signal parent", signal.SIGHUP), ("signal parent", signal.SIGTERM),
        ("await signals", 1), ("note signals", None), *done(output, stopped=True),
    ]  # fmt: skip
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervised(life)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert json.loads((tmp_path / "script" / "signals.json").read_text()) == [signal.SIGTERM]


def test_a_child_that_dies_after_a_signal_is_not_started_again(
    supervised: Run, output: Path
) -> None:
    dying = [("signal parent", signal.SIGTERM), ("await signals", 1), ("kill", signal.SIGKILL)]
    run = supervised([started(0), *saved(2, output), *dying])
    assert isinstance(run.outcome, KeyboardInterrupt)
    assert len(run.settings) == 1
    assert "SIGKILL" in texts(run.events)[0]


def test_a_callback_that_wants_an_end_gets_it(supervised: Run, output: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepDone):
            raise StopRun

    life = [*steps(1, 3), ("await signals", 1), *done(output, step=2, stopped=True)]
    run = supervised(life, callback=stop)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 130


def test_an_error_of_a_callback_leaves_no_child(supervised: Run, output: Path) -> None:
    def fail(event: Event) -> None:
        raise ZeroDivisionError

    life = [("group", None), *steps(1, 3), ("await signals", 1), *done(output, stopped=True)]
    run = supervised(life, callback=fail)
    assert isinstance(run.outcome, ZeroDivisionError)
    own, _, _ = json.loads((output.parent / "script" / "group.json").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(own, 0)


def test_lines_that_a_dying_child_cut_short_are_left_out(supervised: Run, output: Path) -> None:
    cut = [("bytes", '{"message": "StepDone", "st'), ("kill", signal.SIGKILL)]
    run = supervised([*saved(1, output), *cut], done(output))
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0


def test_much_output_is_kept_to_its_end(supervised: Run, output: Path) -> None:
    life = [("print", "x" * 3_000_000), ("print", "The end.")]
    run = supervised([*saved(1, output), *life, ("kill", signal.SIGKILL)], done(output))
    assert "\n  The end.\n" in texts(run.events)[0]
    assert len((output / "crashes").iterdir().__next__().read_text()) < 5_000


def test_a_run_out_of_memory_keeps_less_and_then_computes_less_at_once(
    supervised: Run, output: Path
) -> None:
    lack = failed(NO_MEMORY, 75)
    lives = [
        [started(0), *saved(2, output), *lack], [started(2), *lack], [started(2), *lack],
        [started(2, 2), *lack], [started(2, 1), *steps(3, 10), *done(output)],
    ]  # fmt: skip
    run = supervised(*lives, batch_size=4)
    assert isinstance(run.outcome, RunEnd) and run.outcome.status == 0
    chosen = [
        {n: s[n] for n in ("grad_checkpoint", "micro_batch_size") if n in s} for s in run.settings
    ]
    both = {"grad_checkpoint": True}
    assert chosen == [{}, {}, both, both | {"micro_batch_size": 2}, both | {"micro_batch_size": 1}]
    changes = [event for event in run.events if isinstance(event, SettingsChanged)]
    assert [event.settings for event in changes] == [
        {"grad_checkpoint": True}, {"micro_batch_size": 2}, {"micro_batch_size": 1},
    ]  # fmt: skip
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
        [started(0), *saved(2, output), killed], [started(2), *saved(4, output), killed],
        [started(4), killed], [started(4), *done(output)],
    ]  # fmt: skip
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
        ([[("exit", 3)]], "failed", "The training process ended with status 3"),
        ([[("signal parent", signal.SIGTERM), ("await signals", 1), ("kill", signal.SIGKILL)]],
         "interrupted", "was ended by SIGKILL"),
    ],
)  # fmt: skip
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
    assert stored.reason.startswith(reason)
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
