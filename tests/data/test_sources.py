"""What sources name, and how their rows are called."""

from pathlib import Path

import pytest

from orpo_mlx.data.sources import (
    Source,
    find_sources,
    iter_rows,
)
from orpo_mlx.errors import OrpoError


def test_a_folder_gives_the_first_of_the_splits_that_it_holds(tmp_path: Path) -> None:
    for name in ("valid.jsonl", "train.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')
    splits = ["test", "valid", "train"]
    [source] = find_sources([str(tmp_path)], splits=splits)
    assert source.files == (tmp_path / "valid.jsonl",)


def test_every_source_that_names_no_file_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.csv").write_text("")
    (tmp_path / "bare").mkdir()
    with pytest.raises(OrpoError) as error:
        find_sources(["gone.jsonl", "other", "bare"], splits=["test", "valid"], flag="--valid-data")
    assert str(error.value) == (
        f"--valid-data gone.jsonl: no such file or folder (from {tmp_path}).\n"
        "--valid-data other: the folder holds no test.jsonl or valid.jsonl, nor "
        "such of another kind (found: data.csv). Name a file instead.\n"
        "--valid-data bare: the folder holds no test.jsonl or valid.jsonl, nor "
        "such of another kind (found: nothing). Name a file instead."
    )


def test_a_file_that_vanished_says_so(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match=r"gone: cannot be read \(No such file or directory\)\."):
        list(iter_rows(Source("gone", (tmp_path / "gone",), ("gone",)), []))
