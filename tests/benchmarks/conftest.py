"""The benchmark's script with rates that need not agree."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import measure

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "__main__.py"


class Result(NamedTuple):
    status: int
    out: str
    err: str


Bench = Callable[..., Result]


@pytest.fixture
def bench_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the script on a machine whose other work may slow one contestant and not another."""
    monkeypatch.setattr(measure, "RATE_TOLERANCE", 1.0)
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments: object) -> Result:
        status = main([str(a) for a in arguments])
        return Result(status, *capsys.readouterr())

    return run
