"""metrics.jsonl as anybody may have left it."""

import json
from pathlib import Path

import pytest

from orpo_mlx.events import Event
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.log import MetricsLog, load_metrics, missing_steps
from tests.training.runs import notices, rows, settings, stop_after

GOOD = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": NaN}']
FOREIGN = [
    b"my own note",
    b'"a text"',
    b"[1, 2]",
    b"17",
    b"null",
    b'{"loss": 2.0}',
    b'{"step": "two", "loss": 2.0}',
    b'{"step": true}',
    b'{"step": 1, "loss": "low"}',
    b'{"step": 1, "loss": null}',
    b'{"step": 1, "loss": {}}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_lines_that_are_not_a_runs_are_set_aside(foreign: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([GOOD[0], foreign, b"", GOOD[1], b""]))
    assert [row["step"] for row in load_metrics(file)] == [1, 2]
    events: list[Event] = []
    MetricsLog(file, after_step=2, report=events.append)
    [text] = notices(events, warning=True)
    assert text == f"{file}: 1 line not of a run moved to {file}.bad."
    assert (tmp_path / "metrics.jsonl.bad").read_bytes() == foreign + b"\n"
    assert len(file.read_bytes().splitlines()) == 2


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(GOOD[0] + b"\n" + GOOD[1][:9])
    events: list[Event] = []
    MetricsLog(file, after_step=1, report=events.append)
    assert events == []
    assert file.read_bytes() == GOOD[0] + b"\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("gone", "text"),
    [
        (set(), ""),
        ({1}, "step 1"),
        ({12, 13, 14, 15, 31}, "steps 12 to 15 and 31"),
        ({1, 3, 4, 40}, "steps 1, 3 to 4 and 40"),
        ({*range(1, 41)}, "steps 1 to 40"),
        ({*range(1, 41, 2)}, f"steps {', '.join(map(str, range(1, 38, 2)))} and 39"),
    ],
)
def test_steps_that_are_missing_are_named(tmp_path: Path, gone: set[int], text: str) -> None:
    """A validation after a step is not its training metrics; steps after the checkpoint go."""
    file, events = tmp_path / "metrics.jsonl", list[Event]()
    lines = [{"step": n, "loss": 2.0} for n in range(1, 45) if n not in gone]
    lines += [{"step": n, "eval_loss": 2.0} for n in range(0, 45, 5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    MetricsLog(file, after_step=40, report=events.append)
    lacking = f"metrics.jsonl lacks {text} of the 40 before this checkpoint."
    assert notices(events, warning=True) == ([lacking] if gone else [])


def test_many_gaps_are_counted_and_a_file_that_is_gone_is_one(tmp_path: Path) -> None:
    assert missing_steps([], 0) == ""
    rows = [{"step": n, "loss": 1.0} for n in range(2, 101, 2)]
    assert missing_steps(rows, 100) == f"steps {', '.join(map(str, range(1, 40, 2)))} and 30 more"
    events: list[Event] = []
    MetricsLog(tmp_path / "metrics.jsonl", after_step=7, report=events.append)
    assert notices(events) == ["metrics.jsonl lacks steps 1 to 7 of the 7 before this checkpoint."]


def test_a_run_goes_on_past_foreign_lines(llama: Path, pairs_file: Path, tmp_path: Path) -> None:
    changes = {"steps": 4, "save_every": 2}
    whole, other = (
        settings(llama, pairs_file, tmp_path / n, **changes) for n in ("whole", "other")
    )
    train(whole)
    train(other, [stop_after(2)])
    file = other.output / "metrics.jsonl"
    file.write_bytes(b"\n".join([b"mine", file.read_bytes(), json.dumps({"mine": 1}).encode()]))
    train(other.model_copy(update={"resume": True}))
    assert rows(other.output) == rows(whole.output)
