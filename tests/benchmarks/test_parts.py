"""The parts that `make bench PART=...` measures: that each runs, small, and shows its ratio."""

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "parts.py"
NUMBER = r"[\d.]+"

pytestmark = [pytest.mark.long, pytest.mark.touchy]


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("steps", rf"checkpointed / not: {NUMBER} of the time, {NUMBER} of the memory"),
        ("tokens", rf"pairs cached: {NUMBER} of the tokenizer's own rate"),
        ("checks", rf"60 pairs checked: {NUMBER} s, \d+ times finding their words"),
        ("start", rf"train --help: {NUMBER}"),
        ("sample", rf"sample / generate: {NUMBER} times the tokens a second"),
    ],
    ids=["steps", "tokens", "checks", "start", "sample"],
)
def test_every_part_is_measured(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    llama: Path,
    part: str,
    shown: str,
) -> None:
    monkeypatch.setenv("ORPO_MLX_CACHE", str(tmp_path))
    small = ["--rounds", "1", "--pairs", "60", "--hidden", "64", "--tokens", "4"]
    arguments = [*small, "--model", str(llama)]
    assert runpy.run_path(str(SCRIPT))["main"]([part, *arguments]) == 0
    assert re.search(shown, capsys.readouterr().out)
