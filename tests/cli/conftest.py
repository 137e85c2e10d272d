"""The command line as a person meets it: status, standard output, standard error."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from orpo_mlx.cli.main import run


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs `orpo-mlx ARGUMENTS` in an empty folder, as the installed script does."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(a) for a in arguments])
        return Result(status, *capfd.readouterr())

    return call
