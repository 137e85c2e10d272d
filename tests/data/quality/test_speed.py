"""How long a check of many pairs takes."""

import json
import re
import time
from pathlib import Path
from random import Random

import pytest

from orpo_mlx.config import DataCheckConfig
from orpo_mlx.review.data_check import check_data
from tests.data.quality.clean import MAKERS

PAIRS = 50_000
CHARACTERS = 700  # of each answer: 400 tokens a pair with its prompt
ALLOWED_SECONDS = 120.0
UNIT_SECONDS = 0.085  # what `unit` takes on the two cores on which a check of these takes 55 s


def unit() -> float:
    """Seconds of a fixed piece of work of the same kind: the better of three."""
    text = "The kettle in the office has to be descaled, because the water there is hard. " * 20
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(2_000):
            frozenset(re.findall(r"\w+", text.lower()))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def save_pairs(file: Path, count: int) -> None:
    rng = Random(0)
    makers = [make for name, make in MAKERS.items() if name != "one word"]
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            make = makers[number % 8 % len(makers)]
            prompt, *answers = make(rng)
            for side in (0, 1):
                while len(answers[side]) < CHARACTERS:
                    answers[side] += "\n\n" + make(rng)[1]
            row = {"prompt": f"{prompt} ({number})", "chosen": answers[0], "rejected": answers[1]}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@pytest.mark.long
def test_fifty_thousand_pairs_are_checked_in_two_minutes(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    save_pairs(file, PAIRS)
    before, start = unit(), time.perf_counter()
    report = check_data(DataCheckConfig(data=[str(file)]))
    seconds = time.perf_counter() - start
    assert sum(report.pairs.values()) == PAIRS
    assert seconds < ALLOWED_SECONDS * max(before, unit()) / UNIT_SECONDS
