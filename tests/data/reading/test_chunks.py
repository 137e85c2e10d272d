"""Rows of a source by the chunk, with their locations and what is wrong with them."""

import gzip
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Row,
    Source,
    iter_chunks,
    iter_rows,
    rows_of,
)
from orpo_mlx.errors import OrpoError
from tests.data.reading.test_sources import LINE, error_of, fill, find

FORMS = {
    "lines.jsonl": "\n".join(f'{{"a": "{i}"}}' for i in range(1_000)),
    "array.json": "[" + ",\n".join(f'{{"a": "{i}"}}' for i in range(1_000)) + "]",
    "row.json": "[" + ",".join(f'{{"a": "{i}"}}' for i in range(1_000)) + "]",
    "rows.csv": "a\n" + "\n".join(str(i) for i in range(1_000)),
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_truncated_archive_reports_how_much_of_it_is_complete() -> None:
    lines = [f'{{"a": "{i * 7919 % 10007}"}}\n' for i in range(20_000)]
    packed = gzip.compress("".join(lines).encode())
    Path("a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    source, rows = find("a.jsonl.gz")[0], []
    with pytest.raises(OrpoError) as error:
        rows.extend(iter_rows(source, ReadReport()))
    start, _, end = str(error.value).partition(" complete lines")
    assert start.startswith("a.jsonl.gz: the file is cut short, after ")
    assert end == " (not used)."
    count = int(start.rpartition(" ")[2].replace(",", ""))
    assert 0 <= count - len(rows) < CHUNK_ROWS


def test_a_table_that_is_damaged_further_on_reports_after_how_many_rows() -> None:
    table = pa.table({"a": [f"{i:>500}" for i in range(2_000)]})
    pq.write_table(table, "a.parquet", row_group_size=500, compression="none", use_dictionary=False)
    content = bytearray(Path("a.parquet").read_bytes())
    header = content.find(b"\x15", content.find(f"{999:>500}".encode()) + 500)
    content[header : header + 40] = bytes(40)  # the header of the third row group's page
    Path("a.parquet").write_bytes(content)
    [source] = find("a.parquet")
    with pytest.raises(
        OrpoError, match=r"^a\.parquet: the file is damaged \(.*\), after 1,000 complete rows"
    ):
        list(iter_rows(source, ReadReport()))


def test_a_file_that_vanished_is_an_error() -> None:
    gone = Source("gone", (Path("gone"),), ("gone",))
    assert (
        error_of(lambda: list(iter_rows(gone, ReadReport())))
        == "gone: cannot be read (No such file or directory)."
    )


@pytest.mark.parametrize("name", [*FORMS, "rows.parquet"])
def test_chunks_are_small_picklable_and_numbered(name: str) -> None:
    if name in FORMS:
        fill(name, text=FORMS[name])
    else:
        pq.write_table(pa.table({"a": [str(i) for i in range(1_000)]}), name)
    [source] = find(name)
    report = ReadReport()
    chunks = [pickle.loads(pickle.dumps(chunk)) for chunk in iter_chunks(source, report)]
    assert [len(chunk.content) for chunk in chunks] == [CHUNK_ROWS] * 4
    assert [chunk.first for chunk in chunks] == [1, 251, 501, 751]
    rows = [row for chunk in chunks for row in rows_of(chunk, report)]
    assert rows == list(iter_rows(source, report))
    assert [row.values for row in rows] == [{"a": str(i)} for i in range(1_000)]
    assert len({row.location for row in rows}) == 1_000
    assert report.problems == []


def test_chunks_of_long_rows_hold_few_of_them() -> None:
    fill("a.jsonl", text=f'{{"a": "{"x" * 1_000_000}"}}\n' * 10)
    sizes = [
        sum(map(len, chunk.content)) for chunk in iter_chunks(find("a.jsonl")[0], ReadReport())
    ]
    assert len(sizes) == 3
    assert max(sizes) <= CHUNK_BYTES + 1_000_100


def test_faults_of_records_and_of_lines_come_with_their_locations() -> None:
    fill("a.csv", text="a,b\n1\n1,2\n")
    fill("b.jsonl", text=LINE + "{\n")
    report = ReadReport()
    rows = [row for source in find("a.csv", "b.jsonl") for row in iter_rows(source, report)]
    assert rows == [Row("a.csv:3", {"a": "1", "b": "2"}), Row("b.jsonl:1", {"a": 1})]
    assert [str(problem) for problem in report.problems] == [
        "a.csv:2: 1 field, but the header has 2 columns",
        "b.jsonl:2: not JSON: Expecting property name enclosed in double quotes at column 2",
    ]
