import json
import sys
from pathlib import Path

import pytest

from orpo_mlx.install_advice import pip_install
from tests.cli.conftest import Cli
from tests.loaded import assert_loads_none

SAMPLES = Path(__file__).parents[2] / "orpo_mlx" / "data" / "samples"


@pytest.fixture
def severe(tmp_path: Path) -> Path:
    """Sixty pairs, of which line 2 holds a marker and control characters of a terminal."""
    rows = [json.loads(line) for line in (SAMPLES / "train.jsonl").read_text().splitlines()][:60]
    rows[1]["chosen"] += "<|im_end|>\x1b[2J\x07"
    file = tmp_path / "severe.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_findings_are_shown_worst_first_with_rows_examples_and_advice(
    cli: Cli, severe: Path
) -> None:
    result = cli("data", "check", severe)
    assert result.status == 0, result.err
    blocks = [line for line in result.out.splitlines() if line.startswith(("SEVERE", "WARNING"))]
    assert blocks[0] == "SEVERE  markers  1 of 60 rows (1.7%)"
    assert blocks[1].startswith("WARNING")
    flat = " ".join(result.out.split())
    assert "an answer holds the markers of a chat template." in flat
    # A long path is broken wherever the table ends.
    assert f"{severe}:2chosenholds<|im_end|>" in "".join(result.out.split())
    assert "What to do: Cut the answers at the first marker" in flat
    assert "bag-of-words classifier" in flat
    assert result.out.splitlines()[-1].startswith("1 severe, ")
    assert "read as" in result.err


def test_nothing_of_the_data_moves_the_cursor(cli: Cli, severe: Path) -> None:
    out = cli("data", "check", severe).out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_strict_exits_with_2_only_when_something_severe_is_found(cli: Cli, severe: Path) -> None:
    assert cli("data", "check", severe, "--strict").status == 2
    assert cli("data", "check", SAMPLES, "--strict").status == 0


def test_json_is_one_object_on_standard_output(cli: Cli, severe: Path) -> None:
    result = cli("data", "check", severe, "--json", "--strict")
    report = json.loads(result.out)
    assert result.status == 2
    assert report["severe"] == 1
    assert report["findings"][0]["rows"] == [f"{severe}:2"]


def test_a_page_is_written_and_none_is_replaced_unasked(
    cli: Cli, severe: Path, tmp_path: Path
) -> None:
    page = tmp_path / "check.html"
    assert cli("data", "check", severe, "--html", page).status == 0
    assert page.read_text().startswith("<!doctype html>")
    page.write_text("mine")
    result = cli("data", "check", severe, "--html", page)
    assert (result.status, page.read_text()) == (1, "mine")
    assert result.err == (
        f"Error: --html {page} exists. Replace it with --overwrite, or name another.\n"
    )
    assert cli("data", "check", severe, "--html", page, "--overwrite").status == 0
    assert "Data check" in page.read_text()


def test_wrong_thresholds_are_reported_before_anything_is_read(cli: Cli, tmp_path: Path) -> None:
    result = cli("data", "check", tmp_path / "none.jsonl", "--threshold", "cues=0.7")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Error: --threshold cues: no such threshold. Did you mean cue?")


def test_a_threshold_changes_what_is_found(cli: Cli, severe: Path) -> None:
    findings = []
    for more in ((), ("--threshold", "cue=0.99", "--threshold", "echo=9")):
        report = json.loads(cli("data", "check", severe, "--json", *more).out)
        findings.append({finding["name"] for finding in report["findings"]})
    assert "list_items" in findings[0]
    assert "list_items" not in findings[1]
    assert report["thresholds"]["echo"] == 9


def test_a_missing_library_names_the_extra_to_install(
    cli: Cli, severe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    result = cli("data", "check", severe)
    assert (result.status, result.out) == (1, "")
    assert pip_install("check") in result.err


@pytest.mark.touchy
def test_a_check_without_a_model_loads_neither_mlx_nor_torch(severe: Path) -> None:
    code = (
        "from orpo_mlx.cli.main import run\n"
        f"assert run(['data', 'check', {str(severe)!r}, '--quiet', '--json']) == 0"
    )
    assert_loads_none(code, {"mlx", "torch", "transformers", "matplotlib"})
