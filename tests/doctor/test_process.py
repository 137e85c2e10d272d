"""The process of the checks, with programs in its place that end in every way."""

import queue
from pathlib import Path
from types import SimpleNamespace

import pytest

from orpo_mlx.doctor import process
from orpo_mlx.doctor.verdict import FAILED, OK, Check, Running
from tests.alarm import HANG_SECONDS

pytestmark = pytest.mark.touchy

# Three checks; `FAULT` is what the second does.
PROGRAM = """
import json, os, sys, time
print("noise", file=sys.stderr)
for number, name in enumerate(("imports", "one", "two")):
    if number < int(sys.argv[2]):
        continue
    if number == BAD:
        print("last words", file=sys.stderr, flush=True)
    print(json.dumps({"name": name, "number": number}), flush=True)
    if number == BAD:
        FAULT
    verdict = {"name": name, "status": "ok", "detail": os.environ["MLX_ENABLE_TF32"]}
    print(json.dumps(verdict), flush=True)
"""


def events(
    monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str, bad: int = 1
) -> list[Running | Check]:
    program = PROGRAM.replace("FAULT", fault).replace("BAD", str(bad))
    (folder / "stand_in.py").write_text(program)
    monkeypatch.setattr(process, "MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return list(process.iter_checks_apart())


def test_verdicts_are_passed_on_and_float32_is_float32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert events(monkeypatch, tmp_path, "pass") == [
        part for name in ("imports", "one", "two") for part in (Running(name), Check(name, OK, "0"))
    ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("os.abort()", "the process ended by SIGABRT: last words"),
        ("os._exit(3)", "the process ended with status 3: last words"),
        ("os._exit(0)", "the process ended with status 0: last words"),
    ],
)
def test_a_check_that_ends_its_process_has_failed_and_the_next_ones_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, words: str
) -> None:
    checks = [e for e in events(monkeypatch, tmp_path, fault) if isinstance(e, Check)]
    assert [(c.name, c.status) for c in checks] == [("imports", OK), ("one", FAILED), ("two", OK)]
    assert checks[1].detail == words
    assert "Close other programs" in checks[1].remedy


class OutOfTime(queue.Queue[str]):
    """Check 1 is not waited for, as if its time were over; all others get all that they need."""

    asked = ""

    def get(self, block: bool = True, timeout: float | None = None) -> str:
        assert timeout == process.LIMIT_SECONDS
        if '"number": 1' in self.asked:
            raise queue.Empty
        self.asked = super().get(timeout=HANG_SECONDS)
        return self.asked


def test_a_check_that_takes_too_long_is_ended_and_the_next_ones_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = SimpleNamespace(Queue=OutOfTime, Empty=queue.Empty)
    monkeypatch.setattr(process, "queue", stand_in)
    reported = events(monkeypatch, tmp_path, f"time.sleep({HANG_SECONDS})")
    checks = [e for e in reported if isinstance(e, Check)]
    assert [(c.name, c.status) for c in checks] == [("imports", OK), ("one", FAILED), ("two", OK)]
    assert checks[1].detail == "not done within 240 s: last words"


def test_nothing_follows_where_mlx_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reported = events(monkeypatch, tmp_path, "os.abort()", bad=0)
    assert [type(e) for e in reported] == [Running, Check]
    assert reported[1] == Check(
        "imports", FAILED, "the process ended by SIGABRT: last words", process.CRASHED
    )


def test_a_crash_in_the_last_check_is_the_last_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reported = events(monkeypatch, tmp_path, "os.abort()", bad=2)
    checks = [e for e in reported if isinstance(e, Check)]
    assert [c.status for c in checks] == [OK, OK, FAILED]


def test_a_process_that_cannot_begin_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MODULE", "no_such_module")
    (check,) = process.iter_checks_apart()
    assert isinstance(check, Check)
    assert check.detail.startswith("the process ended with status 1")
    assert "no_such_module" in check.detail
