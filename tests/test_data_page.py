"""docs/data.md: every row on it is read as the page says, every command prints what it shows."""

import json
import re
import shutil
from pathlib import Path

import pytest

from orpo_mlx.data.pairs.format_names import FORMAT_NAMES
from orpo_mlx.data.pairs.load import Reading, iter_pairs, recognize
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import find_sources, iter_rows
from tests.cli.conftest import Cli
from tests.cli.conftest import cli as cli

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^###? )", PAGE, re.M | re.S))
EXAMPLES = [
    (name, *examples)
    for name, text in SECTIONS.items()
    for examples in re.findall(r"```json\n(.*?)```\n\nread as: (.*?)\.\n", text, re.S)
]
# Under headings of their own, after the row formats.
MORE = re.findall(
    r"```json\n([^`]*)```\n\nread as: (.*?)\.\n",
    PAGE[PAGE.index("\n## Weights\n") : PAGE.index("\n## What happens to a row\n")],
)
# Those with a model show its own tokens.
TRANSCRIPTS = [
    shown
    for shown in re.findall(r"```\n\$ orpo-mlx (.*?)\n(.*?)```", PAGE, re.S)
    if "--model" not in shown[0] and shown[1]
]


def test_every_format_has_an_example() -> None:
    assert {name for name, *_ in EXAMPLES} == set(FORMAT_NAMES)


@pytest.mark.parametrize(("name", "rows", "sentence"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(
    tmp_path: Path, name: str, rows: str, sentence: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(rows, encoding="utf-8")
    (source,) = find_sources([str(file)], splits=("train",))
    for reading in (Reading(), Reading(format=name)):
        shape = recognize(list(iter_rows(source, ReadReport())), reading, "rows")
        assert (shape.name, shape.sentence) == (name, sentence)
        report = ReadReport()
        (pair,) = iter_pairs(source, reading, report)
        assert not report.problems
        assert json.dumps(pair.chosen) != json.dumps(pair.rejected)


@pytest.mark.parametrize(("rows", "sentence"), MORE)
def test_weights_and_sft_rows_are_read_as_the_page_says(
    tmp_path: Path, rows: str, sentence: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(rows, encoding="utf-8")
    (source,) = find_sources([str(file)], splits=("train",))
    is_sft = sentence.startswith("SFT rows")
    reading = Reading(sft=is_sft)
    assert recognize(list(iter_rows(source, ReadReport())), reading, "rows").sentence == sentence
    (pair,) = iter_pairs(source, reading, ReadReport())
    assert (pair.is_sft, pair.weight) == ((True, 1.0) if is_sft else (False, 0.5))


def test_the_page_shows_weights_and_sft_rows() -> None:
    assert len(MORE) == 4


@pytest.mark.touchy
@pytest.mark.parametrize(("command", "output"), TRANSCRIPTS)
def test_a_command_prints_what_the_page_shows(
    cli: Cli, tmp_path: Path, command: str, output: str
) -> None:
    shutil.copyfile(ROOT / "orpo_mlx/data/samples/train.jsonl", tmp_path / "pairs.jsonl")
    result = cli(*command.split())
    assert result.status == 0, result.err
    shown = [line.rstrip() for line in result.out.rstrip().splitlines()]
    assert shown == output.rstrip().splitlines()
