"""metrics.jsonl as anybody may have left it."""

import json
from pathlib import Path

import pytest

from orpo_mlx.events import Event
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.log import MetricsLog, load_metrics
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
    MetricsLog(file, after_step=9, report=events.append)
    assert events == []
    assert file.read_bytes() == GOOD[0] + b"\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


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
