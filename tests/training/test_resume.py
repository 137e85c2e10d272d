"""A run that is stopped, for any reason, continues bit for bit as if it had not been."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Progress, Started, StopRun
from orpo_mlx.training.loop import train
from tests import tiny
from tests.alarm import HANG_SECONDS
from tests.training.runs import LONG, rows, settings, stop_after, tensors, train_by_rule_1

# The command line, interrupted as by Ctrl-C once three steps are done.
INTERRUPTED = """
import os, signal, sys
from orpo_mlx.cli.main import run
from orpo_mlx.cli.progress import Display
from orpo_mlx.events import StepDone

show = Display.__call__

def press(display, event):
    show(display, event)
    if isinstance(event, StepDone) and event.step == 3:
        os.kill(os.getpid(), signal.SIGINT)

Display.__call__ = press
sys.exit(run(sys.argv[1:]))
"""


def assert_same_run(output: Path, whole: Path) -> None:
    """Metrics row by row; adapter and last checkpoint (weights, moments, state) bit for bit."""
    assert rows(output) == rows(whole)
    expected = {n: v for n, v in tensors(whole).items() if "step-" not in n or "0000020" in n}
    resumed = tensors(output)
    assert {n: resumed[n] for n in expected} == expected
    for name in ("checkpoints/step-0000020/state.json", "adapter_config.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_seven_and_thirteen_steps_equal_twenty(
    llama: Path, data: Path, tmp_path: Path, uninterrupted: tuple[Path, list[Event]]
) -> None:
    output = tmp_path / "run"
    first = train(settings(llama, data, output, **LONG), [stop_after(7)])
    assert (first.step, first.stopped) == (7, True)
    assert (output / "adapters.safetensors").exists()
    again = train(settings(llama, data, output, **LONG, resume=True))
    assert (again.step, again.stopped) == (20, False)
    assert_same_run(output, uninterrupted[0])


@pytest.mark.parametrize("at", [0, 7, 20])
def test_a_stop_during_a_validation_changes_nothing(
    llama: Path, data: Path, tmp_path: Path, uninterrupted: tuple[Path, list[Event]], at: int
) -> None:
    output, seen = tmp_path / "run", [0]

    def callback(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "Validating":
            seen[0] += event.done < event.total
            if seen[0] == {0: 1, 7: 3, 20: 7}[at]:  # three batches each, the last one whole
                raise StopRun

    first = train(settings(llama, data, output, **LONG), [callback])
    assert (first.step, first.stopped) == (at, True)
    again = train(settings(llama, data, output, **LONG, resume=True))
    assert not again.stopped
    assert again.metrics == {k: v for k, v in rows(output)[-1].items() if k != "step"}
    assert_same_run(output, uninterrupted[0])


@pytest.mark.touchy
def test_ctrl_c_saves_and_says_how_to_go_on(
    llama: Path, data: Path, tmp_path: Path, uninterrupted: tuple[Path, list[Event]]
) -> None:
    output, file = tmp_path / "run", tmp_path / "settings.yaml"
    config = settings(llama, data, output, **LONG).model_dump(mode="json", exclude_unset=True)
    file.write_text(yaml.safe_dump(config))
    stopped = run_train(["-c", INTERRUPTED], file)
    assert stopped.returncode == 130, stopped.stderr
    assert "Stopped after step 3; everything is saved" in stopped.stderr
    assert f"orpo-mlx train --resume --output {output}" in stopped.stderr
    assert rows(output)[-1]["step"] == 3
    again = run_train(["-m", "orpo_mlx"], file, "--resume")
    assert again.returncode == 0, again.stderr
    assert_same_run(output, uninterrupted[0])


def run_train(program: list[str], config: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *program, "train", "--config", str(config), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)


@pytest.mark.touchy
def test_a_second_signal_ends_at_once(llama: Path, data: Path, tmp_path: Path) -> None:
    def impatient(event: Event) -> None:
        if isinstance(event, Started):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        result = train(settings(llama, data, tmp_path / "one"), [impatient])
        assert not result.stopped  # no handler of ours yet: Started comes before the loop

        def twice(event: Event) -> None:
            if isinstance(event, Progress) and event.stage == "Validating":
                impatient(Started(0, 0, 0, 0))

        with pytest.raises(KeyboardInterrupt):
            train(settings(llama, data, tmp_path / "two"), [twice])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.touchy
def test_a_run_in_a_thread_leaves_signals_alone(llama: Path, data: Path, tmp_path: Path) -> None:
    results: list[Any] = []
    config = settings(llama, data, tmp_path / "run", steps=1)
    thread = threading.Thread(target=lambda: results.append(train(config)))
    thread.start()
    thread.join()
    assert results[0].step == 1


def test_a_stop_before_the_first_step_is_a_run_to_resume(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    def callback(event: Event) -> None:
        raise StopRun

    output = tmp_path / "run"
    assert train(settings(llama, data, output), [callback]).step == 0
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-0000000"]
    assert train(settings(llama, data, output, resume=True)).step == 4
    train(settings(llama, data, tmp_path / "whole"))
    assert rows(output) == rows(tmp_path / "whole")


def test_a_finished_run_can_be_resumed_to_the_same_end(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    first = train(settings(llama, data, tmp_path / "run"))
    before = tensors(tmp_path / "run"), rows(tmp_path / "run")
    assert train(settings(llama, data, tmp_path / "run", resume=True)) == first
    assert (tensors(tmp_path / "run"), rows(tmp_path / "run")) == before


def test_a_run_goes_on_by_the_rule_it_was_begun_under(llama: Path, tmp_path: Path) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 40)
    held = {"valid_fraction": 0.25, "steps": 6, "eval_every": 2}
    whole, old = tmp_path / "whole", tmp_path / "old"
    train_by_rule_1(settings(llama, pairs, whole, **held))
    train_by_rule_1(settings(llama, pairs, old, **held), stop_after(3))
    train(settings(llama, pairs, old, **held, resume=True))
    assert rows(old) == rows(whole)
    last = {name: value for name, value in tensors(whole).items() if "step-" not in name}
    assert {name: tensors(old)[name] for name in last} == last
    # The newest rule makes another split of these pairs.
    file = old / "config.yaml"
    file.write_text(file.read_text() + "rules: 2\n")
    with pytest.raises(OrpoError, match="the training pairs are not those of"):
        train(settings(llama, pairs, old, **held, resume=True))
    file.write_text(file.read_text().replace("rules: 2", "rules: 5"))
    with pytest.raises(OrpoError, match=r"rules: 5 is not known to this version of orpo-mlx"):
        train(settings(llama, pairs, old, **held, resume=True))


def test_resume_needs_the_same_pairs_model_and_a_checkpoint(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    model = tiny.save_base(tmp_path / "base")
    config = settings(model, pairs, tmp_path / "run", steps=2)
    train(config)
    again = settings(model, pairs, tmp_path / "run", resume=True, steps=2)
    tiny.save_pairs(pairs, 9)
    with pytest.raises(OrpoError, match=r"--resume: the training pairs are not those of .*step-0"):
        train(again)
    pairs.write_text('{"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "b"}\n')
    with pytest.raises(OrpoError, match=r"No pair.* is left.\n--resume: .* with --overwrite\.\Z"):
        train(again)
    tiny.save_pairs(pairs, 8)
    model.rename(tmp_path / "old")
    tiny.save_base(model, intermediate_size=128)
    with pytest.raises(OrpoError, match=r"is not the model of .*:\n  model\.layers\.0\.mlp"):
        train(again)
    for file in sorted((tmp_path / "run" / "checkpoints").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(OrpoError, match="holds no checkpoint yet"):
        train(again)
