"""What sources name, and the pieces in which their rows come."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import (
    PREVIEW_HINT,
    Row,
    Source,
    check_parts,
    find_sources,
    held_out_sources,
    is_hub_source,
    iter_rows,
)
from orpo_mlx.errors import OrpoError
from orpo_mlx.public_names import public_name

LINE = '{"a": 1}\n'


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def fill(*names: str, text: str = LINE) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def find(*sources: str, **options: Any) -> list[Source]:
    return find_sources(sources, **{"splits": ["train"], **options})


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(OrpoError) as error:
        call()
    return str(error.value)


def test_a_file_is_called_as_it_was_written() -> None:
    fill("a.jsonl", "below/b.csv", text="a\n1\n")
    Path("a.jsonl").write_text(LINE)
    assert find("a.jsonl", "below/b.csv") == [
        Source("a.jsonl", (Path("a.jsonl"),), ("a.jsonl",)),
        Source("below/b.csv", (Path("below/b.csv"),), ("below/b.csv",)),
    ]


def test_a_weight_follows_a_colon_unless_the_name_holds_it() -> None:
    fill("a.jsonl", "b:2", "d:2", "folder/train.jsonl", "c1.jsonl", "c2.jsonl")
    sources = find("a.jsonl:2", "b:2", "d:2:0.5", "folder:3e1", "c*.jsonl:0.25")
    assert [(source.name, source.weight) for source in sources] == [
        ("a.jsonl", 2.0),
        ("b:2", 1.0),
        ("d:2", 0.5),
        ("folder", 30.0),
        ("c*.jsonl", 0.25),
    ]


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "two", ""])
def test_a_weight_that_is_not_a_positive_number_is_an_error(weight: str) -> None:
    fill("a.jsonl")
    assert error_of(lambda: find(f"a.jsonl:{weight}")) == (
        f"--data a.jsonl:{weight}: the weight after the colon must be a positive number, "
        f"found {weight!r}."
    )


def test_a_glob_gives_its_files_sorted_each_under_its_own_name() -> None:
    fill("x/b.jsonl", "x/a.jsonl", "x/deep/er/c.jsonl", "x/d.txt")
    Path("x/z.jsonl").mkdir()
    [source] = find("x/*.jsonl")
    assert source.labels == ("x/a.jsonl", "x/b.jsonl")
    assert [row.location for row in iter_rows(source, ReadReport())] == [
        "x/a.jsonl:1",
        "x/b.jsonl:1",
    ]
    [source] = find("x/**/*.jsonl")
    assert source.labels == ("x/a.jsonl", "x/b.jsonl", "x/deep/er/c.jsonl")
    assert find("x/[ab].jsonl")[0].labels == ("x/a.jsonl", "x/b.jsonl")


def test_a_file_whose_name_looks_like_a_glob_is_that_file() -> None:
    fill("a[1].jsonl", "a1.jsonl")
    assert find("a[1].jsonl")[0].files == (Path("a[1].jsonl"),)


def test_the_home_folder_is_known(tmp_path: Path) -> None:
    fill("home/a.jsonl")
    assert find("~/a.jsonl")[0].files == (tmp_path / "home" / "a.jsonl",)
    assert find("~/*.jsonl")[0].files == (tmp_path / "home" / "a.jsonl",)


def test_what_is_here_wins_over_the_hub() -> None:
    fill("user/set/train.jsonl", "user/file")
    sources = find("user/set", "user/file")
    assert [source.labels for source in sources] == [("user/set/train.jsonl",), ("user/file",)]


def test_a_folder_gives_the_first_of_the_splits_that_it_holds() -> None:
    fill("f/valid.jsonl", "f/train.jsonl")
    assert find("f", splits=["test", "valid", "train"])[0].files == (Path("f/valid.jsonl"),)
    assert find("f", splits=["test", "valid"], split="train")[0].files == (Path("f/train.jsonl"),)
    fill("f/train_prefs.jsonl")
    assert find("f")[0].files == (Path("f/train_prefs.jsonl"),)


def test_shards_of_a_folder_are_files_of_their_own() -> None:
    fill("f/data/train-00001-of-00002.jsonl", "f/data/train-00000-of-00002.jsonl")
    [source] = find("f")
    assert [row.location for row in iter_rows(source, ReadReport())] == [
        "f/data/train-00000-of-00002.jsonl:1",
        "f/data/train-00001-of-00002.jsonl:1",
    ]


def test_rows_of_a_saved_set_are_numbered_over_its_shards() -> None:
    rows = Dataset.from_dict({"a": list(range(600))})
    DatasetDict({"train": rows, "test": rows}).save_to_disk(
        "set", num_shards={"train": 4, "test": 1}
    )
    messages: list[str] = []
    [source] = find("set", log=messages.append)
    assert messages == ["set: split train is read (found: train, test)"]
    assert len(source.files) == 4
    assert [(row.location, row.values) for row in iter_rows(source, ReadReport())] == [
        (f"set[train]:row {i + 1}", {"a": i}) for i in range(600)
    ]


def test_every_source_that_names_no_file_is_reported_at_once(tmp_path: Path) -> None:
    fill("other/data.csv", "pairs.jsonl", "cut.parquet")
    Path("bare").mkdir()
    sources = ["gone.jsonl", "pair.jsonl", "other", "bare", "*.csv", "cut.parquet", "pairs.jsonl"]
    message = error_of(lambda: find(*sources, splits=["test", "valid"], flag="--valid-data"))
    other_kind = "has no test.jsonl or valid.jsonl, nor one in another format"
    assert message.split("\n") == [
        f"--valid-data gone.jsonl: no such file or folder (from {tmp_path}).",
        f"--valid-data pair.jsonl: no such file or folder (from {tmp_path}). "
        "Did you mean pairs.jsonl?",
        f"--valid-data other: the folder {other_kind} (found: data.csv). Name a file instead.",
        f"--valid-data bare: the folder {other_kind} (found: nothing). Name a file instead.",
        f"--valid-data *.csv: no file has such a name (from {tmp_path}).",
        "--valid-data cut.parquet: is not in Parquet format, despite its name.",
    ]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    Path("pairs.jsonl").symlink_to("gone.jsonl")
    assert error_of(lambda: find("pairs.jsonl")) == (
        "--data pairs.jsonl: is a link to gone.jsonl, which does not exist."
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", ""),
        ("b.jsonl", "\n \n"),
        ("c.json", "[]"),
        ("d.csv", "a,b\n"),
        ("e.tsv", ""),
        ("f.parquet", ""),
    ],
)
def test_a_file_without_rows_is_reported_with_the_others(name: str, text: str) -> None:
    fill(name, text=text)
    fill("f/train.jsonl", text="")
    message = error_of(lambda: find(name, "f"))
    files = [f"--data {label}: the file is empty." for label in (name, "f/train.jsonl")]
    assert message.split("\n") == [*files, PREVIEW_HINT]


def test_tables_without_rows_are_empty_but_an_empty_shard_of_many_is_not() -> None:
    empty = pa.table({"a": pa.array([], pa.string())})
    pq.write_table(empty, "a.parquet")
    assert "--data a.parquet: the file is empty." in error_of(lambda: find("a.parquet"))
    Dataset.from_dict({"a": [1]}).save_to_disk("set", num_shards=1)
    with pa.OSFile("set/none.arrow", "wb") as out, pa.ipc.new_stream(out, empty.schema):
        pass
    state = Path("set/state.json")
    listed = '"_data_files": ['
    state.write_text(state.read_text().replace(listed, listed + '{"filename": "none.arrow"}, '))
    assert len(find("set")[0].files) == 2


def test_what_is_neither_file_nor_folder_is_an_error(tmp_path: Path) -> None:
    os.mkfifo("pipe")
    message = "--data pipe: is not a file; data is read more than once, so write it to a file."
    assert error_of(lambda: find("pipe")) == message
    name = "x" * 300 + ".jsonl"
    assert error_of(lambda: find(name)) == f"--data {name}: cannot be read (File name too long)."


def test_options_that_reach_nothing_are_reported() -> None:
    fill("a.jsonl", "f/train.jsonl", "f/other.jsonl")
    parts = {"split": "x", "subset": "y", "revision": "z"}
    message = error_of(lambda: check_parts(["a.jsonl:2"], **parts))
    assert message.split("\n") == [
        "--split x: no source here has splits, files have none.",
        "--subset y: no source here is a data set of the Hub.",
        "--data-revision z: no source here is a data set of the Hub.",
    ]
    message = error_of(lambda: check_parts(["a.jsonl", "f:2"], **parts))
    assert [line.partition(" ")[0] for line in message.split("\n")] == [
        "--subset",
        "--data-revision",
    ]
    check_parts(["a.jsonl", "user/set:2"], **parts)
    check_parts(["a.jsonl"])
    sources = find("a.jsonl", "f", split="other")
    assert [source.labels for source in sources] == [("a.jsonl",), ("f/other.jsonl",)]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.csv", b"PK\x03\x04rest", "is a spreadsheet or a zip archive: save its rows as CSV"),
        ("a.csv", "a,b".encode("utf-16"), "is text in UTF-16: save it as UTF-8"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not "
         "the data: run git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, "
         "not the data: run git lfs pull"),
        ("a.parquet.gz", gzip.compress(b"PAR1...", mtime=0), "is a compressed table: decompress "
         "it first"),
        ("a.arrow", b"a,b\n", "is not in Arrow format, despite its name"),
        ("a.json", b'{\n  "train": [', "holds one JSON object over several lines: write an "
         "array of objects, or one object per line"),
    ],
)  # fmt: skip
def test_what_is_known_not_to_be_read_is_named(name: str, content: bytes, fault: str) -> None:
    Path(name).write_bytes(content)
    assert error_of(lambda: find(name)) == f"--data {name}: {fault}."


def test_the_content_decides_the_format_where_the_name_does_not() -> None:
    pq.write_table(pa.table({"a": [1]}), "rows.data")
    fill("rows.txt", text='[{"a": 1}]')
    Path("rows.jsonl").write_bytes(gzip.compress(LINE.encode()))
    locations = [
        next(iter_rows(source, ReadReport()))
        for source in find("rows.data", "rows.txt", "rows.jsonl")
    ]
    assert locations == [
        Row("rows.data:row 1", {"a": 1}, is_padded=True),
        Row("rows.txt:row 1", {"a": 1}),
        Row("rows.jsonl:1", {"a": 1}),
    ]


def test_a_file_named_by_two_sources_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "p"}\n')
    with pytest.raises(OrpoError, match=r"names .*a\.jsonl again \(after .*a\.jsonl\)"):
        find_sources([str(file), str(tmp_path / "*.jsonl")], splits=["train"])


@pytest.mark.parametrize("name", ["data/pairs.txt", "data/pairs", "~nobody-here/x"])
def test_a_file_named_like_a_set_of_the_hub_is_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert held_out_sources([name], splits=("valid", "test")) == []
    assert not is_hub_source(name)
    assert public_name(name) == Path(name).name
    assert [source.files for source in find_sources([name], splits=("train",))] == [(Path(name),)]
