"""`orpo-mlx train --supervise`: what a person sees, what is written, what the parent loads."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orpo_mlx.cli.child import Segment, run_as_child
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import DeviceError, OrpoError
from orpo_mlx.events import Event, StepDone, StopRun
from orpo_mlx.supervisor.enabled import LAUNCHERS, is_supervised
from orpo_mlx.supervisor.event_lines import Failure, parse_message
from orpo_mlx.supervisor.handover import VARIABLE, Handover, receive_handover, settings_file
from tests import tiny
from tests.alarm import HANG_SECONDS
from tests.cli.conftest import Cli
from tests.training.runs import tensors

# A parent as the installed script is one, and what it has loaded at its end.
PARENT = """
import sys
from orpo_mlx.cli.main import run
status = run(sys.argv[1:])
heavy = {"mlx", "mlx_lm", "numpy", "transformers", "tokenizers", "pyarrow"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture
def arguments(llama: Path, pairs_file: Path, tmp_path: Path) -> list[object]:
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 4, start=16)
    return ["train", "--model", llama, "--data", pairs_file, "--valid-data", valid, "--steps", 4,
            "--batch-size", 4, "--rank", 2, "--save-every", 2]  # fmt: skip


def without_figures(text: str) -> list[str]:
    return re.sub(r"\d+\.\d s\b|[\d,]+ tokens/s|[\d.]+ \wB are free", "#", text).splitlines()


@pytest.mark.touchy
def test_a_supervised_run_is_the_run_and_shows_the_same(cli: Cli, arguments: list[object]) -> None:
    alone = cli(*arguments, "--output", "one", "--json")
    supervised = cli(*arguments, "--output", "two", "--json", "--supervise")
    assert (supervised.status, alone.status) == (0, 0), supervised.err
    here, there = (without_figures(r.err) for r in (alone, supervised))
    assert [line.replace("two", "one") for line in there] == here
    assert len(here) > 10
    assert json.loads(supervised.out) == json.loads(alone.out) | {"output": "two"}
    assert supervised.out.count("\n") == 1
    assert tensors(Path("two")) == tensors(Path("one"))
    assert {p.name for p in Path("two").iterdir()} == {p.name for p in Path("one").iterdir()}


@pytest.mark.touchy
def test_the_parent_loads_no_mlx_numpy_or_transformers(
    arguments: list[object], tmp_path: Path
) -> None:
    words = [*arguments, "--output", "run", "--supervise", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PARENT, *map(str, words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]),
             os.environ["PYTHONPATH"]])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.sub(r"\d+:\d\d", "#", done.stderr) == "Done in #: run\n[]\n"


@pytest.mark.touchy
def test_an_error_is_one_message_and_nothing_is_written(cli: Cli, arguments: list[object]) -> None:
    arguments[arguments.index("--data") + 1] = "none.jsonl"
    result = cli(*arguments, "--output", "run", "--supervise")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: --data none.jsonl: no such file")
    assert result.err.count("\n") == 1
    assert not Path("run").exists()


def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException) -> tuple[int, str]:
    """Status of a child whose training raises, and the failure that it reports."""

    def fail(config: TrainConfig, callbacks: object) -> None:
        raise error

    monkeypatch.setattr("orpo_mlx.training.loop.train_in_locked_folder", fail)
    reading, writing = os.pipe()
    lock = os.open(tmp_path, os.O_RDONLY)
    config = TrainConfig(model="base", data=["pairs.jsonl"], output=tmp_path / "run")
    with settings_file(config) as settings:
        status = run_as_child(Handover(os.dup(settings), writing, lock))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        messages = [parse_message(line) for line in pipe]
    failures = [message.text for message in messages if isinstance(message, Failure)]
    return status, "".join(failures)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (OrpoError("What is wrong."), 1, "What is wrong."),
        (DeviceError("Metal ended the work."), 75, "Metal ended the work."),
        (RuntimeError("[METAL] Command buffer execution failed"), 75, "[METAL] Command"),
        (RuntimeError("[malloc] Unable to allocate 1 bytes."), 75, "Unable to allocate"),
        (MemoryError(), 75, "MemoryError"),
        (OSError(28, "No space left on device", "file"), 1, "file cannot be written: the disk is"),
        (RuntimeError("[matmul] Last dimension"), 1, ""),
        (OSError(5, "Input/output error"), 1, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_childs_status_says_how_its_work_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    error: BaseException, status: int, text: str,
) -> None:  # fmt: skip
    code, failure = ended(monkeypatch, tmp_path, error)
    assert code == status
    assert failure.startswith(text) or text in failure
    assert bool(failure) == bool(text)
    assert ("Traceback" in capsys.readouterr().err) == (status == 1 and not text)


def test_what_is_handed_over_is_received_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert receive_handover() is None
    reading, writing = os.pipe()
    for descriptor in (reading, writing):
        os.set_inheritable(descriptor, True)
    handover = Handover(reading, writing, -1)
    monkeypatch.setenv(VARIABLE, handover.environment()[VARIABLE])
    assert receive_handover() == handover
    assert not os.get_inheritable(reading) and not os.get_inheritable(writing)
    assert receive_handover() is None
    os.close(reading)
    os.close(writing)


def test_a_segment_ends_after_its_steps() -> None:
    steps: list[Event] = [StepDone(n, {}) for n in (8, 9)]
    segment, never = Segment(2), Segment(None)
    segment(steps[0])
    assert not segment.over
    with pytest.raises(StopRun):
        segment(steps[1])
    assert segment.over
    never(steps[0])
    assert not never.over


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": "b", "data": ["p"], "output": "run", **changes})


@pytest.mark.parametrize("gpu", [True, False])
def test_runs_are_supervised_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("orpo_mlx.backend.has_gpu", lambda: gpu)
    assert is_supervised(config()) == gpu
    assert is_supervised(config(supervise=True))
    assert not is_supervised(config(supervise=False))
    assert is_supervised(config(segment_steps=5))
    with pytest.raises(OrpoError, match="--segment-steps needs a supervised run"):
        is_supervised(config(segment_steps=5, supervise=False))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_no_run_is_supervised_under_a_launcher(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("orpo_mlx.backend.has_gpu", lambda: True)
    monkeypatch.setenv(name, "0")
    assert not is_supervised(config())
    assert is_supervised(config(supervise=True))
