"""A set of single answers of which few pairs come out is reported as what it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.data import DataCheckConfig, DataPreviewConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.review.pairs.check import check_data
from orpo_mlx.review.pairs.preview import preview
from tests.training.test_dataset import loaded

WHAT = "a set of single answers rather than pairs"


def kto(prompt: str, answers: int) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completion": f"answer {n} to {prompt}", "label": n == 0}
        for n in range(answers)
    ]


def scored(prompt: str, answers: int) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "response": f"answer {n} to {prompt}", "score": n}
        for n in range(answers)
    ]


def ranked(prompt: str, answers: int) -> list[dict[str, Any]]:
    scores = [{"text": f"answer {n} to {prompt}", "score": n} for n in range(answers)]
    return [{"prompt": prompt, "completions": scores}]


def write(folder: Path, make: Any, *, pairs: int, alone: int) -> Path:
    rows = [row for n in range(pairs) for row in make(f"question {n}", 2)]
    rows += [row for n in range(alone) for row in make(f"other question {n}", 1)]
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("make", [kto, scored, ranked])
@pytest.mark.parametrize(("pairs", "alone"), [(1, 298), (1, 3), (20, 60), (1, 2), (50, 50), (9, 0)])
def test_few_pairs_of_many_answers_are_reported(
    tmp_path: Path, make: Any, pairs: int, alone: int
) -> None:
    log: list[str] = []
    read = load_pairs(write(tmp_path, make, pairs=pairs, alone=alone), log=log.append)
    assert len(read) == pairs
    assert sum(WHAT in line for line in log) == (alone > 2 * pairs)


def test_check_preview_and_training_report_it_and_what_to_do(llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path, kto, pairs=1, alone=298)
    report = check_data(DataCheckConfig(data=[str(file)]))
    assert report.findings[0].name == "unpaired"
    assert report.findings[0].severity == "warning"
    assert "left_out" in [f.name for f in report.findings]
    assert report.findings[0].what == (
        f"{WHAT}: 1 pair comes out, 298 answers have no counterpart to the same prompt"
    )
    assert report.findings[0].advice == WHAT_TO_DO
    events: list[Event] = []
    preview(DataPreviewConfig(data=[str(file)]), events.append)
    assert warnings(events) == 1
    for _ in range(2):  # tokenized, and from the cache
        events.clear()
        loaded(llama, [str(file)], events, valid_fraction=0)
        assert warnings(events) == 1


def warnings(events: list[Event]) -> int:
    given = [event.text for event in events if isinstance(event, Notice) and event.warning]
    return sum(WHAT in text and WHAT_TO_DO in text for text in given)


def test_where_no_pair_comes_out_the_error_says_what_to_do(tmp_path: Path) -> None:
    file = write(tmp_path, kto, pairs=0, alone=30)
    with pytest.raises(OrpoError, match="No pair was found") as error:
        check_data(DataCheckConfig(data=[str(file)]))
    assert str(error.value).endswith(WHAT_TO_DO)
