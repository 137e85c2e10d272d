"""Which files make a split: by their names, and as a saved data set says."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from orpo_mlx.data.reading.splits import (
    choose_split,
    data_kind,
    files_by_split,
    is_saved,
    pick_saved,
    pick_split,
    sort_shards,
)
from orpo_mlx.errors import OrpoError

HELD_OUT = ("test", "valid")


@pytest.mark.parametrize(
    ("present", "wanted", "chosen"),
    [
        (["train", "test"], ["train"], "train"),
        (["train_sft", "test_prefs", "train_prefs", "train"], ["train"], "train_prefs"),
        (["train_prefs", "test_prefs", "test"], HELD_OUT, "test_prefs"),
        (["train_prefs", "test"], [*HELD_OUT, "train"], "test"),
        (["train", "validation", "eval"], HELD_OUT, "validation"),
        (["train", "dev"], HELD_OUT, "dev"),
        (["train", "train_prefs"], HELD_OUT, None),
        ([], ["train"], None),
    ],
)
def test_the_first_wanted_split_is_chosen_that_is_there(
    present: list[str], wanted: list[str], chosen: str | None
) -> None:
    assert choose_split(present, wanted) == chosen


def test_a_split_among_several_is_reported_and_one_that_is_not_there_is_an_error() -> None:
    messages: list[str] = []
    present = ["train_prefs", "train_sft"]
    assert pick_split(present, ["train"], None, messages.append) == "train_prefs"
    assert messages == ["split train_prefs is read (found: train_prefs, train_sft)"]
    assert pick_split(present, ["train"], "train_sft", messages.append) == "train_sft"
    assert pick_split(["train"], ["train"], None, messages.append) == "train"
    assert len(messages) == 1
    with pytest.raises(OrpoError) as error:
        pick_split(present, ["train"], "validation")
    assert str(error.value) == "no split named validation (found: train_prefs, train_sft)."
    with pytest.raises(OrpoError) as error:
        pick_split(present, HELD_OUT, None)
    assert str(error.value) == (
        "no split named test or valid (found: train_prefs, train_sft). Use --split."
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSONL.gz", "jsonl"),
        ("user/set.csv.zst", "csv"),
        ("a.b.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.parquet.gz", ""),
        ("README.md", ""),
        ("user/jsonl", ""),
        (".jsonl", ""),
    ],
)
def test_the_kind_follows_from_the_name(name: str, kind: str) -> None:
    assert data_kind(name) == kind


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder


def test_files_are_grouped_by_the_split_in_their_names(tmp_path: Path) -> None:
    names = [
        "train-00001-of-00002.parquet",
        "train-00000-of-00002.parquet",
        "test_prefs-00000-of-00001-0123456789abcdef.parquet",
        "valid.jsonl.gz",
        "README.md",
        "data/valid.csv",
        "data/test.csv",
        "deeper/below/other.csv",
    ]
    by_split = files_by_split(fill(tmp_path, *names))
    by_name = {
        split: [str(f.relative_to(tmp_path)) for f in files] for split, files in by_split.items()
    }
    assert by_name == {
        "train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        "test_prefs": ["test_prefs-00000-of-00001-0123456789abcdef.parquet"],
        "valid": ["valid.jsonl.gz"],
        "test": ["data/test.csv"],
    }


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    fill(tmp_path, "train_10.jsonl", "train_9.jsonl", "train_1.jsonl")
    files = sort_shards(files_by_split(tmp_path)["train"])
    assert [file.name for file in files] == ["train_1.jsonl", "train_9.jsonl", "train_10.jsonl"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (
            ["train.jsonl", "train.parquet"],
            "more than one format for one split (train.jsonl, train.parquet). Name the file.",
        ),
        (
            ["train.jsonl", "train-1.jsonl"],
            "more than one format for one split (train-1.jsonl, train.jsonl). Name the file.",
        ),
        (
            ["train-00000-of-00002.parquet"],
            "1 of 2 shards are there (train-00000-of-00002.parquet). Copy or download the others.",
        ),
        (
            ["train-00000-of-00001-0123456789.parquet", "train-00000-of-00001-9876543210.parquet"],
            "2 of 1 shards are there (train-00000-of-00001-0123456789.parquet, "
            "train-00000-of-00001-9876543210.parquet). Name the files.",
        ),
    ],
    ids=["two kinds", "whole and shard", "missing", "two generations"],
)
def test_a_split_that_is_not_plainly_one_is_an_error(
    tmp_path: Path, names: list[str], fault: str
) -> None:
    with pytest.raises(OrpoError) as error:
        sort_shards(files_by_split(fill(tmp_path, *names))["train"])
    assert str(error.value) == f"{tmp_path}: {fault}"


def saved(folder: Path, *, shards: int = 1) -> Path:
    rows = Dataset.from_dict({"a": [str(i) for i in range(6)]})
    splits = DatasetDict({"train_prefs": rows, "test_prefs": rows.select([5, 3])})
    splits.save_to_disk(folder, num_shards={"train_prefs": shards, "test_prefs": 1})
    return folder


def test_a_saved_set_is_read_as_its_state_file_lists_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", shards=2)
    (folder / "train_prefs" / "data-00009-of-00002.arrow").touch()
    assert is_saved(folder)
    assert not is_saved(tmp_path)
    chosen, files = pick_saved(folder, ["train"], None, lambda text: None)
    assert chosen == "train_prefs"
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert files == [folder / "train_prefs" / name for name in names]
    assert pick_saved(folder, ["train"], "test_prefs", print)[0] == "test_prefs"


def test_a_single_saved_split_is_read_whatever_is_wanted(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set") / "test_prefs"
    chosen, files = pick_saved(folder, ["train"], None, print)
    assert (chosen, [file.name for file in files]) == ("train", ["data-00000-of-00001.arrow"])
    with pytest.raises(OrpoError, match=r"no split named valid \(found: train\)"):
        pick_saved(folder, ["train"], "valid", print)


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ("{", "state.json: cannot be read (Expecting property name"),
        ("[]", "state.json: must hold a JSON object."),
        ("{}", ": state.json names files that are not there: none at all."),
        (
            json.dumps({"_data_files": [{"filename": "gone.arrow"}]}),
            ": state.json names files that are not there: gone.arrow.",
        ),
        (
            json.dumps({"_indices_data_files": [{"filename": "x"}], "_data_files": []}),
            ": was saved with a selection of rows by an old version of datasets.",
        ),
    ],
    ids=["no JSON", "a list", "empty", "missing", "indices"],
)
def test_a_damaged_saved_set_is_an_error(tmp_path: Path, state: str, fault: str) -> None:
    folder = saved(tmp_path / "set") / "train_prefs"
    (folder / "state.json").write_text(state)
    with pytest.raises(OrpoError) as error:
        pick_saved(folder, ["train"], None, print)
    assert fault in str(error.value)
