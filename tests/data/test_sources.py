"""Rows of JSON Lines files, and what is said of lines and sources that hold none."""

import json
from pathlib import Path

import pytest

from orpo_mlx.data.sources import (
    Problem,
    Row,
    Source,
    find_sources,
    iter_rows,
)
from orpo_mlx.data.text_files import MAX_LINE_BYTES
from orpo_mlx.errors import OrpoError


def read(tmp_path: Path, content: bytes) -> tuple[list[Row], list[Problem]]:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    problems: list[Problem] = []
    rows = list(iter_rows(Source("pairs", (file,), ("pairs.jsonl",)), problems))
    return rows, problems


@pytest.mark.parametrize(
    "content",
    [b'{"a": "x"}\n{"a": "y"}\n', b'{"a": "x"}\r\n{"a": "y"}\r\n', b'{"a": "x"}\n{"a": "y"}'],
    ids=["newlines", "CRLF", "no newline at the end"],
)
def test_each_line_is_a_row_with_its_place(tmp_path: Path, content: bytes) -> None:
    rows = [Row("pairs.jsonl:1", {"a": "x"}), Row("pairs.jsonl:2", {"a": "y"})]
    assert read(tmp_path, content) == (rows, [])


def test_a_byte_order_mark_is_passed_over_at_the_start_alone(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert rows == [Row("pairs.jsonl:1", {"a": 1})]
    fault = "not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1"
    assert problems == [Problem("pairs.jsonl:2", fault)]


def test_blank_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b'\n  \r\n{"a": 1}\n\n')
    assert (rows, problems) == ([Row("pairs.jsonl:3", {"a": 1})], [])


def test_line_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"
    rows, _ = read(tmp_path, json.dumps({"a": text}, ensure_ascii=False).encode() + b"\n")
    assert rows == [Row("pairs.jsonl:1", {"a": text})]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"a": "x"', "not JSON: Expecting ',' delimiter at column 10"),
        (b"prompt,chosen", "not JSON: Expecting value at column 1"),
        (b'{"a": "caf\xe9"}', "not UTF-8: byte 0xe9 at column 11"),
        (b"\xff\xfe{\x00", "not UTF-8: byte 0xff at column 1"),
        (b'["x"]', "must be a JSON object, found a list"),
        (b'"x"', "must be a JSON object, found text"),
        (b"7", "must be a JSON object, found a number"),
        (b"null", "must be a JSON object, found null"),
        (b"true", "must be a JSON object, found true or false"),
        (b'{"a": NaN}', "not JSON: NaN is no JSON value (write null)"),
        (b'{"a": -Infinity}', "not JSON: -Infinity is no JSON value (write null)"),
        (
            b'{"a": 1, "b": 2, "a": 3}',
            'the key "a" stands twice in one object',
        ),
        (
            b'{"a": [{"role": "user", "role": "user"}]}',
            'the key "role" stands twice in one object',
        ),
        (
            b'{"a": "x", "b": [{"c": "\\ud83d."}]}',
            '"b" holds half a character (a lone surrogate, \\ud83d)',
        ),
        (
            b'{"\\udc00": "x"}',
            '"\\udc00" holds half a character (a lone surrogate, \\udc00)',
        ),
        (b'{"a": "' + b"x\ty" + b'"}', "not JSON: Invalid control character at column 9"),
        (b'{"a": ' + b"[" * 200_000, "not JSON that can be read: nested too deeply"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_named_and_the_others_are_read(
    tmp_path: Path, line: bytes, fault: str
) -> None:
    rows, problems = read(tmp_path, b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert rows == [Row("pairs.jsonl:1", {"a": 1}), Row("pairs.jsonl:3", {"a": 3})]
    assert problems == [Problem("pairs.jsonl:2", fault)]


def test_escaped_pairs_of_surrogates_are_characters(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b'{"a": "\\ud83d\\ude00"}\n')
    assert (rows, problems) == ([Row("pairs.jsonl:1", {"a": "\N{GRINNING FACE}"})], [])


def test_a_number_of_thousands_of_digits_is_a_fault_of_its_line(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b'{"a": ' + b"1" * 5000 + b"}\n")
    assert rows == []
    assert "not JSON that can be read: Exceeds the limit" in problems[0].fault


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, 2 * MAX_LINE_BYTES + 2, 10_000_000])
def test_a_very_long_line_is_refused_and_the_next_one_read(tmp_path: Path, size: int) -> None:
    line = b'{"a": "' + b"x" * (size - 9) + b'"}'
    rows, problems = read(tmp_path, line + b'\n{"a": 1}\n')
    assert rows == [Row("pairs.jsonl:2", {"a": 1})]
    fault = "the line is longer than 4,000,000 bytes (one JSON object a line is read)"
    assert problems == [Problem("pairs.jsonl:1", fault)]


def test_the_longest_line_allowed_is_read(tmp_path: Path) -> None:
    line = b'{"a": "' + b"x" * (MAX_LINE_BYTES - 10) + b'"}\n'
    assert len(line) == MAX_LINE_BYTES
    rows, problems = read(tmp_path, line)
    assert len(rows) == 1
    assert problems == []


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
