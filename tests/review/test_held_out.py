"""Pairs that a run did not train on are found again, whatever rule it was started under."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.review.held_out import TrainedRun, held_out_pairs
from orpo_mlx.run_folder.settings import load_run_config
from orpo_mlx.training import dataset
from orpo_mlx.training.loop import train
from tests import tiny
from tests.training.runs import settings, train_by_rule_1

ALL = 10_000


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the pairs are that the last run trained on."""
    locations: list[str] = []
    load = dataset.load_run_pairs

    def watched(*arguments: Any, **named: Any) -> Any:
        pairs = load(*arguments, **named)
        locations[:] = [pair.location for pair in pairs.train]
        return pairs

    monkeypatch.setattr("orpo_mlx.training.loop.load_run_pairs", watched)
    return locations


def held_out_locations(run: Path, base: Path, data: tuple[str, ...] = ()) -> list[str]:
    pairs = held_out_pairs(TrainedRun(run, load_run_config(run), base), data, ALL)
    return [pair.location for pair in pairs]


@pytest.mark.parametrize("begin", [train, train_by_rule_1])
def test_they_are_those_that_the_run_did_not_train_on(
    llama: Path, tmp_path: Path, trained_on: list[str], begin: Callable[[TrainConfig], Any]
) -> None:
    file, run = tiny.save_pairs(tmp_path / "pairs.jsonl", 40), tmp_path / "run"
    begin(settings(llama, file, run, steps=1, valid_fraction=0.25))
    locations = held_out_locations(run, llama)
    assert locations and len(trained_on) + len(locations) == 40
    assert not set(locations) & set(trained_on)


def rows_that_tokenizing_drops(count: int) -> list[dict[str, Any]]:
    """Pairs of which every third is one and the same answer once it is cut to 128 tokens."""
    rows = [tiny.toy_pair(number) for number in range(count)]
    for row in rows[::3]:
        start = "please check the light " * 60
        row |= {"chosen": start + "now", "rejected": start + "later"}
    return rows


def save(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("begin", [train, train_by_rule_1])
def test_pairs_that_were_left_out_make_no_difference(
    llama: Path, tmp_path: Path, trained_on: list[str], begin: Callable[[TrainConfig], Any]
) -> None:
    file = save(tmp_path / "pairs.jsonl", rows_that_tokenizing_drops(60))
    run = tmp_path / "run"
    begin(settings(llama, file, run, steps=1, valid_fraction=0.25))
    assert len(trained_on) < 40
    locations = held_out_locations(run, llama)
    assert locations and not set(locations) & set(trained_on)


def test_of_pairs_that_have_grown_since_only_the_newest_rule_can_tell(
    llama: Path, tmp_path: Path, trained_on: list[str]
) -> None:
    file = tiny.save_pairs(tmp_path / "pairs.jsonl", 40)
    runs = {name: tmp_path / name for name in ("new", "old")}
    train_by_rule_1(settings(llama, file, runs["old"], steps=1, valid_fraction=0.25))
    train(settings(llama, file, runs["new"], steps=1, valid_fraction=0.25))
    tiny.save_pairs(file, 80)
    assert held_out_locations(runs["old"], llama) == []
    locations = held_out_locations(runs["new"], llama)
    assert locations and not set(locations) & set(trained_on)


def test_without_a_checkpoint_an_old_run_has_no_held_out_pairs(llama: Path, tmp_path: Path) -> None:
    """Whether its pairs are the same is not known then, and with others the sides change."""
    file, run = tiny.save_pairs(tmp_path / "pairs.jsonl", 40), tmp_path / "run"
    train_by_rule_1(settings(llama, file, run, steps=1, valid_fraction=0.25))
    assert held_out_locations(run, llama)
    shutil.rmtree(run / "checkpoints")
    assert held_out_locations(run, llama) == []


@pytest.mark.parametrize("begin", [train, train_by_rule_1])
def test_a_folder_with_held_out_files_is_not_split(
    llama: Path, tmp_path: Path, begin: Callable[[TrainConfig], Any]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    tiny.save_pairs(folder / "train.jsonl", 20)
    tiny.save_pairs(folder / "valid.jsonl", 4, start=100)
    begin(settings(llama, folder, tmp_path / "run", steps=1, valid_fraction=0.25))
    locations = held_out_locations(tmp_path / "run", llama)
    assert locations == [f"{folder / 'valid.jsonl'}:{line}" for line in range(1, 5)]


def test_pairs_that_are_elsewhere_are_not_guessed(llama: Path, tmp_path: Path) -> None:
    file, run = tiny.save_pairs(tmp_path / "pairs.jsonl", 20), tmp_path / "run"
    valid = tiny.save_pairs(tmp_path / "valid.jsonl", 4, start=100)
    given = {"steps": 1, "valid_fraction": 0.25, "valid_data": [str(valid)]}
    train(settings(llama, file, run, **given))
    assert held_out_locations(run, llama) == [f"{valid}:{line}" for line in range(1, 5)]
    valid.rename(tmp_path / "moved.jsonl")
    assert held_out_locations(run, llama) == []
    moved = str(tmp_path / "moved.jsonl")
    assert held_out_locations(run, llama, (moved,)) == [f"{moved}:{line}" for line in range(1, 5)]


def test_where_a_source_is_elsewhere_nothing_is_taken(llama: Path, tmp_path: Path) -> None:
    files = [tiny.save_pairs(tmp_path / f"{n}.jsonl", 20, start=20 * n) for n in range(2)]
    run = tmp_path / "run"
    data = [str(file) for file in files]
    train(settings(llama, files[0], run, steps=1, valid_fraction=0.25, data=data))
    assert held_out_locations(run, llama)
    files[1].unlink()
    assert held_out_locations(run, llama) == []
