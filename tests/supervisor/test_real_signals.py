"""Signals, a terminal, a parent's death: nothing is lost, nothing is left running."""

import re
import time
from pathlib import Path

import pytest

from orpo_mlx.run_folder.lock import is_held
from orpo_mlx.training.loop import train
from tests.alarm import HANG_SECONDS
from tests.supervisor.real import (
    Fault,
    assert_same_run,
    command,
    environment,
    is_running,
    lives,
    settings_file,
    supervise,
)
from tests.supervisor.terminal import CTRL_C, CTRL_Z, Terminal, on_terminal, state_of
from tests.training.runs import LONG, settings

pytestmark = [pytest.mark.touchy, pytest.mark.long]


def wait_for_end(pid: int) -> None:
    late = time.monotonic() + HANG_SECONDS
    while is_running(pid):
        assert time.monotonic() < late
        time.sleep(0.02)


def test_a_child_whose_parent_is_killed_saves_and_ends(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    output = tmp_path / "run"
    file = settings_file(llama, data, output)
    killed = supervise(file, faults=[("StepDone", 7, "parent SIGKILL")])
    assert killed.returncode == -9
    [child] = lives(file)
    wait_for_end(child)
    assert not is_held(output)
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == [
        "step-0000005",
        "step-0000007",
    ]
    train(settings(llama, data, output, **LONG, resume=True))
    assert_same_run(output, whole)


@pytest.mark.parametrize("fault", ["SIGTERM", "parent SIGTERM"])
def test_sigterm_to_either_saves_and_ends_both(
    llama: Path, data: Path, tmp_path: Path, whole: Path, fault: str
) -> None:
    output = tmp_path / "run"
    file = settings_file(llama, data, output)
    faults: list[Fault] = [("StepDone", 7, fault)]
    stopped = supervise(file, faults=faults)
    assert stopped.returncode == 130, stopped.stderr
    assert "everything is saved. Continue with: orpo-mlx train --resume" in stopped.stderr
    [child] = lives(file)
    assert not is_running(child) and not is_held(output)
    train(settings(llama, data, output, **LONG, resume=True))
    assert_same_run(output, whole)


def test_ctrl_c_on_a_terminal_saves_and_ends_both(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    output = tmp_path / "run"
    file = settings_file(llama, data, output)
    counted = file.with_suffix(".lives")
    env = environment(counted, [("StepDone", 7, "await ready")])

    def press(terminal: Terminal) -> None:
        terminal.read_until((counted / "ready").exists)
        terminal.press(CTRL_C)

    status, text = on_terminal(command(file, "--supervise"), env, press)
    assert status == 130, text
    assert "Stopping after this micro-batch; Ctrl-C again stops at once." in text
    assert "Stopped after step 7; everything is saved." in text
    [child] = lives(file)
    assert not is_running(child) and not is_held(output)
    train(settings(llama, data, output, **LONG, resume=True))
    assert_same_run(output, whole)


def test_ctrl_z_stops_both_and_fg_lets_both_go_on(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    output = tmp_path / "run"
    file = settings_file(llama, data, output)
    counted = file.with_suffix(".lives")
    env = environment(counted, [("StepDone", 7, "pause ready")])
    states = []

    def press(terminal: Terminal) -> None:
        terminal.read_until((counted / "ready").exists)
        terminal.press(CTRL_Z)
        terminal.read_until(lambda: "stopped" in terminal.text)
        [child] = lives(file)
        states.append(state_of(child))
        (counted / "go").touch()
        terminal.press(b"\n")

    status, text = on_terminal(command(file, "--supervise"), env, press)
    assert status == 0, text
    assert states == ["T"]
    assert_same_run(output, whole)


def lines_of(text: str) -> list[str]:
    """What stays on the terminal, without figures of the machine, bars and what they leave."""
    text = re.sub(r"\d+\.\d s|[\d,]+ tokens/s|\d+:\d\d|\d+\.\d GB", "#", text)
    text = re.sub(r"/[^ ]*/(one|two)", "RUN", text)
    lines = [line.split("\r")[-1].strip() for line in text.replace("\r\n", "\n").split("\n")]
    kept = r"(step +\d+  (held-out|saved)|Training \d|Start-up|Micro|Done|Held|.*read)"
    return [line for line in lines if re.match(kept, line) and "\u2501" not in line]


def test_a_terminal_shows_the_same_with_and_without_a_supervisor(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    shown = []
    for name, flag in (("one", "--no-supervise"), ("two", "--supervise")):
        file = settings_file(llama, data, tmp_path / name, steps=4, save_every=2)
        env = environment(file.with_suffix(".lives"), [])
        shown.append(on_terminal(command(file, flag), env, lambda terminal: None))
    assert [status for status, _ in shown] == [0, 0]
    alone, supervised = (lines_of(text) for _, text in shown)
    assert len(alone) > 8
    assert supervised == alone
    assert "\u2501" in shown[0].text and "\u2501" in shown[1].text  # bars


def test_a_kill_at_load_under_overwrite_leaves_the_new_run(
    llama: Path, data: Path, tmp_path: Path, whole: Path
) -> None:
    """The checkpoints of the run that is replaced lie in the folder when the child dies."""
    output = tmp_path / "run"
    train(settings(llama, data, output, **LONG, seed=1))
    file = settings_file(llama, data, output)
    run = supervise(file, "--overwrite", faults=[("PhaseTime", 0, "SIGKILL")])
    assert run.returncode == 0, run.stderr
    assert "Beginning again: it has written no checkpoint yet." in run.stderr
    assert_same_run(output, whole)
