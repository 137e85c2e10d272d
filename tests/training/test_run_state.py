"""state.json: what a run is doing, how it ended, and why."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.cli.main import run as orpo_mlx_command
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Finished, Listeners, Saved, Started, StepDone, StopRun
from orpo_mlx.run_folder import state as state_module
from orpo_mlx.run_folder.lock import holder, locked
from orpo_mlx.run_folder.state import RunState, load_state, recording, save_state
from orpo_mlx.training.loop import train
from tests.training.runs import notices, rows, settings, stop_after, tensors

WRITTEN = RunState("running", "", 2, 9, "2026-01-02T10:00:00+00:00", "2026-01-02T11:00:00+00:00")


def write(folder: Path, **changes: Any) -> RunState:
    state = WRITTEN._replace(**changes)
    save_state(folder, state)
    return state


def at_step(step: int, action: Callable[[], None]) -> Callable[[Event], None]:
    def callback(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            action()

    return callback


def test_a_run_is_running_then_done(llama: Path, data: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "run", list[RunState | None]()

    def look(event: Event) -> None:
        if isinstance(event, StepDone | Saved | Finished):
            seen.append(load_state(output))

    train(settings(llama, data, output, save_every=2), [look])
    assert [s and s[:4] for s in seen] == [
        ("running", "", 0, 4),
        ("running", "", 0, 4),
        ("running", "", 2, 4),  # saved
        ("running", "", 2, 4),
        ("running", "", 2, 4),
        ("running", "", 4, 4),  # saved
        ("done", "", 4, 4),
    ]
    assert len({s.started for s in seen if s}) == 1


def test_a_callback_stops_a_run_with_its_reason(llama: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output), [stop_after(1)])
    first = load_state(output)
    assert first is not None
    assert first[:4] == ("stopped", "a callback", 1, 4)
    write(output, started="2026-01-02T10:00:00+00:00")

    def enough() -> None:
        raise StopRun("no better in 3 validations")

    train(settings(llama, data, output, resume=True), [at_step(3, enough)])
    again = load_state(output)
    assert again is not None
    assert again[:5] == ("stopped", "no better in 3 validations", 3, 4, WRITTEN.started)


@pytest.mark.touchy
@pytest.mark.parametrize(("number", "reason"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_one_signal_stops_and_a_second_interrupts(
    llama: Path, data: Path, tmp_path: Path, number: str, reason: str
) -> None:
    def press() -> None:
        os.kill(os.getpid(), getattr(signal, number))

    def press_twice() -> None:
        press()
        press()

    output = tmp_path / "run"
    train(settings(llama, data, output), [at_step(1, press)])
    state = load_state(output)
    assert state is not None
    assert state[:4] == ("stopped", reason, 1, 4)
    with pytest.raises(KeyboardInterrupt):
        train(settings(llama, data, output, resume=True), [at_step(2, press_twice)])
    state = load_state(output)
    assert state is not None
    assert state[:4] == ("interrupted", reason, 2, 4)


def test_a_failure_is_written_with_its_first_line(llama: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"

    def fail() -> None:
        raise RuntimeError("out of luck\nand more")

    with pytest.raises(RuntimeError):
        train(settings(llama, data, output), [at_step(2, fail)])
    state = load_state(output)
    assert state is not None
    assert state[:4] == ("failed", "RuntimeError: out of luck", 2, 4)


def test_a_run_that_fails_before_a_checkpoint_gives_way_to_the_earlier_one(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, Started):
            raise OrpoError("It failed.\nTry again.")

    output = tmp_path / "run"
    train(settings(llama, data, output, steps=1))
    before = load_state(output)
    with pytest.raises(OrpoError, match="It failed"):
        train(settings(llama, data, output, overwrite=True), [fail])
    assert load_state(output) == before
    with pytest.raises(OrpoError, match="It failed"):
        train(settings(llama, data, tmp_path / "new"), [fail])
    failed = load_state(tmp_path / "new")
    assert failed is not None
    assert (failed.state, failed.reason) == ("failed", "It failed.")


def test_running_without_a_lock_is_interrupted(tmp_path: Path) -> None:
    state = write(tmp_path)
    killed = state._replace(state="interrupted", reason="killed, or the machine went down")
    assert load_state(tmp_path) == killed
    with locked(tmp_path, lambda event: None):
        assert load_state(tmp_path) == state
    assert load_state(tmp_path) == killed
    for ended in ("done", "stopped", "failed", "interrupted"):
        state = write(tmp_path, state=ended, reason="a reason")
        assert load_state(tmp_path) == state


def test_a_run_that_ends_while_it_is_looked_at_is_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written between the reading of the file and the look at the lock."""
    write(tmp_path)

    def ends(folder: Path) -> bool:
        write(folder, state="done", step=9)
        return False

    monkeypatch.setattr(state_module, "is_held", ends)
    assert load_state(tmp_path) == WRITTEN._replace(state="done", step=9)


def test_where_locks_are_unknown_running_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr(state_module, "is_held", lambda folder: None)
    assert load_state(tmp_path) == WRITTEN


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff", json.dumps(WRITTEN._asdict() | {"more": 1}).encode()]
    + [
        json.dumps(WRITTEN._asdict() | changes).encode()
        for changes in ({"state": "well"}, {"state": []}, {"step": "2"}, {"reason": None})
    ],
)
def test_what_is_not_a_state_is_none(tmp_path: Path, content: bytes) -> None:
    assert load_state(tmp_path) is None
    (tmp_path / "state.json").write_bytes(content)
    assert load_state(tmp_path) is None


@pytest.mark.touchy
def test_readers_never_disturb_a_writer_nor_see_half_a_state(tmp_path: Path) -> None:
    over, seen = threading.Event(), set[str]()

    def read() -> None:
        while not over.is_set():
            state, who = load_state(tmp_path), holder(tmp_path)
            seen.add(f"{state and state.state} {who and who.pid}")

    report = Listeners([])
    with locked(tmp_path, report), recording(tmp_path, report, step=0, steps=50):
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for step in range(50):
            report(Saved(step, tmp_path))
        over.set()
        for reader in readers:
            reader.join()
    assert seen == {f"running {os.getpid()}"}


def test_a_finished_run_is_called_so_and_stays_as_it_is(
    llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, events = tmp_path / "run", list[Event]()
    first = train(settings(llama, data, output))
    weights = output / "adapters.safetensors"
    before = tensors(output), rows(output), weights.stat().st_mtime_ns
    assert train(settings(llama, data, output, resume=True), [events.append]) == first
    finished = f"{output} is finished: 4 of 4 steps. "
    assert finished in "".join(notices(events))
    assert not [event for event in events if isinstance(event, StepDone)]
    assert (tensors(output), rows(output), weights.stat().st_mtime_ns) == before
    assert orpo_mlx_command(["train", "--resume", "--output", str(output)]) == 0
    assert "is finished: 4 of 4 steps." in " ".join(capsys.readouterr().err.split())
    weights.unlink()
    events.clear()
    train(settings(llama, data, output, resume=True), [events.append])
    assert f"{output} is at its last step, 4 of 4" in "".join(notices(events))
    assert (tensors(output), rows(output)) == before[:2]


def test_a_run_past_its_last_step_is_refused(llama: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(settings(llama, data, output))
    file = output / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"steps": 3}))
    with pytest.raises(OrpoError, match="is of step 4, but by its config.yaml the run has 3 steps"):
        train(settings(llama, data, output, resume=True, steps=3))


def test_steps_that_the_metrics_lack_are_reported_at_resume(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    output, events = tmp_path / "run", list[Event]()
    train(settings(llama, data, output), [stop_after(3)])
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"step": 2' not in line))
    train(settings(llama, data, output, resume=True), [events.append])
    warning = "metrics.jsonl lacks step 2 of the 3 before this checkpoint."
    assert warning in notices(events, warning=True)
