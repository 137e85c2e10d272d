"""Parquet and Arrow: rows as they are stored, columns and files that are not read."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, Value

from orpo_mlx.data.reading.arrow_rows import iter_batches, parse_batch
from orpo_mlx.data.reading.blocks import DamagedError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]
ROWS = [
    {"prompt": f"p{i}", "chosen": MESSAGES[: i % 3], "score": i / 4 if i % 5 else None, "ok": i > 9}
    for i in range(1_000)
]


def write(file: Path, table: pa.Table, form: str) -> Path:
    """The table as a file of one form, in batches of 300."""
    if form == "parquet":
        pq.write_table(table, file, row_group_size=300)
        return file
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression="zstd" if form == "packed" else None)
    with new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=300)
    return file


def read(file: Path, *, rows: int = 250, size: int = 1_000_000) -> tuple[list[Any], list[str]]:
    batches = iter_batches(file, rows=rows, size=size)
    parsed = [row for batch in batches for row in parse_batch(batch)]
    return [values for values, fault in parsed if not fault], [f for _, f in parsed if f]


FORMS = pytest.mark.parametrize("form", ["parquet", "file", "packed", "stream"])


@FORMS
def test_rows_are_read_as_they_were_written(tmp_path: Path, form: str) -> None:
    file = write(tmp_path / "rows", pa.Table.from_pylist(ROWS), form)
    assert read(file) == (ROWS, [])


@FORMS
def test_batches_keep_to_rows_and_bytes_and_are_pickled_alone(tmp_path: Path, form: str) -> None:
    table = pa.table({"a": ["x" * 1_000] * 2_000})
    file = write(tmp_path / "rows", table, form)
    batches = list(iter_batches(file, rows=120, size=1_000_000))
    assert max(map(len, batches)) == 120
    assert sum(map(len, batches)) == 2_000
    batches = list(iter_batches(file, rows=120, size=50_000))
    assert 40 <= max(map(len, batches)) <= 50
    assert max(len(pickle.dumps(batch)) for batch in batches) < 60_000


def test_a_table_without_rows_gives_no_batches(tmp_path: Path) -> None:
    empty = pa.table({"a": pa.array([], pa.string())})
    for form in ("parquet", "file", "stream"):
        assert read(write(tmp_path / form, empty, form)) == ([], [])


def test_json_columns_are_decoded_at_any_depth(tmp_path: Path) -> None:
    texts = pa.array(['{"city": ["Bonn"]}', None, "[1]"])
    plain = pa.ExtensionArray.from_storage(pa.json_(), texts)
    calls = pa.StructArray.from_arrays([pa.array(["f", "g", "h"]), plain], ["name", "arguments"])
    lists = pa.ListArray.from_arrays([0, 2, 2, 3], calls)
    file = write(tmp_path / "rows", pa.table({"tools": plain, "calls": lists}), "parquet")
    assert read(file)[0] == [
        {
            "tools": {"city": ["Bonn"]},
            "calls": [
                {"name": "f", "arguments": {"city": ["Bonn"]}},
                {"name": "g", "arguments": None},
            ],
        },
        {"tools": None, "calls": []},
        {"tools": [1], "calls": [{"name": "h", "arguments": [1]}]},
    ]


def test_json_columns_of_hugging_face_datasets_are_decoded(tmp_path: Path) -> None:
    from datasets import Json

    rows = [{"tools": [{"name": "f", "parameters": {"x": 1}}]}, {"tools": [{"other": []}]}]
    Dataset.from_list(rows, features=Features({"tools": Json()})).to_parquet(tmp_path / "rows")
    assert read(tmp_path / "rows") == (rows, [])


def test_text_that_is_not_json_or_not_utf8_is_a_fault_of_its_row(tmp_path: Path) -> None:
    texts = pa.array(["{}", "{", "[]"])
    table = pa.table({"a": pa.ExtensionArray.from_storage(pa.json_(), texts)})
    rows, faults = read(write(tmp_path / "json", table, "parquet"))
    assert rows == [{"a": {}}, {"a": []}]
    assert len(faults) == 1
    assert faults[0].startswith("a column of JSON holds text that is not JSON (")
    raw = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    for form in ("parquet", "file"):
        rows, faults = read(write(tmp_path / form, pa.table({"a": raw}), form))
        assert (rows, faults) == ([{"a": "good"}, {"a": "fine"}], ["holds text that is not UTF-8"])


def test_a_value_that_python_cannot_hold_is_a_fault_of_its_row(tmp_path: Path) -> None:
    times = pa.array([0, 10**12, 1], pa.timestamp("s"))
    table = pa.table({"prompt": ["p", "q", "r"], "at": times})
    rows, faults = read(write(tmp_path / "rows", table, "file"))
    assert [row["prompt"] for row in rows] == ["p", "r"]
    assert len(faults) == 1
    assert faults[0].startswith("holds a value that cannot be read (")


def fault_of(file: Path) -> str:
    with pytest.raises(DamagedError) as error:
        read(file)
    return str(error.value)


def test_a_column_that_is_there_twice_is_refused_inside_structs_too(tmp_path: Path) -> None:
    for form in ("parquet", "file", "stream"):
        double = pa.table([["x"], ["y"], ["z"]], names=["chosen", "prompt", "chosen"])
        fault = fault_of(write(tmp_path / form, double, form))
        assert fault == 'the column "chosen" is present twice'
    inner = pa.StructArray.from_arrays([pa.array(["a"])] * 2, ["role", "role"])
    table = pa.table({"chosen": pa.ListArray.from_arrays([0, 1], inner)})
    fault = fault_of(write(tmp_path / "inner", table, "file"))
    assert fault == 'the column "chosen.item.role" is present twice'


def test_images_and_audio_are_refused_by_name(tmp_path: Path) -> None:
    reason = "holds images, audio or other files, which are not read (leave it out of the file)"
    features = Features({"prompt": Value("string"), "images": [Image()], "sound": Audio()})
    rows = {"prompt": ["p"], "images": [[]], "sound": [None]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "features")
    fault = fault_of(tmp_path / "features")
    assert fault == f'the column "images" {reason}; the column "sound" {reason}'
    picture = pa.array([{"bytes": b"\x89PNG", "path": None}], Image().pa_type)
    table = pa.table({"picture": picture, "prompt": ["p"]})
    assert fault_of(write(tmp_path / "bare", table, "file")) == f'the column "picture" {reason}'


@FORMS
def test_a_file_without_its_end_is_an_error(tmp_path: Path, form: str) -> None:
    file = write(tmp_path / "rows", pa.Table.from_pylist(ROWS), form)
    whole = file.read_bytes()
    for left_out in (1, 8, 100, len(whole) // 2):
        file.write_bytes(whole[:-left_out])
        assert fault_of(file).startswith(("the file is damaged (", "the file is cut short: "))


def test_a_stream_that_ends_between_batches_is_cut_short(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, table.schema)
    writer.write_table(table, max_chunksize=300)
    file = tmp_path / "rows"
    file.write_bytes(sink.getvalue())  # before close
    assert fault_of(file) == "the file is cut short: an Arrow stream without its end"


@pytest.mark.parametrize("form", ["file", "stream", "parquet"])
def test_flipped_bytes_never_end_the_process(tmp_path: Path, form: str) -> None:
    table = pa.table({"a": [f"text {i}" for i in range(50)], "b": [[f"{i}"] for i in range(50)]})
    file = write(tmp_path / "rows", table, form)
    whole = file.read_bytes()
    for at in range(8, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read(file)
        except DamagedError:
            continue
