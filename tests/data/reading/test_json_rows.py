"""Rows of JSON, from lines and from arrays, and what is said of those that hold none."""

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_mlx.data.reading.blocks import MAX_LINE_BYTES
from orpo_mlx.data.reading.json_rows import iter_array
from orpo_mlx.data.reading.report import Problem, ReadReport
from orpo_mlx.data.reading.sources import Row, Source, iter_rows
from orpo_mlx.errors import OrpoError


def read(tmp_path: Path, content: bytes) -> tuple[list[Row], list[Problem]]:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    report = ReadReport()
    rows = list(iter_rows(Source("pairs", (file,), ("pairs.jsonl",)), report))
    return rows, report.problems


@pytest.mark.parametrize(
    "content",
    [b'{"a": "x"}\n{"a": "y"}\n', b'{"a": "x"}\r\n{"a": "y"}\r\n', b'{"a": "x"}\n{"a": "y"}'],
    ids=["newlines", "CRLF", "no newline at the end"],
)
def test_each_line_is_a_row_with_its_location(tmp_path: Path, content: bytes) -> None:
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
        (b'{"a": NaN}', "not JSON: NaN is not a JSON value (write null)"),
        (b'{"a": -Infinity}', "not JSON: -Infinity is not a JSON value (write null)"),
        (
            b'{"a": 1, "b": 2, "a": 3}',
            'the key "a" is given twice in one object',
        ),
        (
            b'{"a": [{"role": "user", "role": "user"}]}',
            'the key "role" is given twice in one object',
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
        (b'{"a": ' + b"[" * 200_000, "JSON that cannot be read: nested too deeply"),
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
    assert "JSON that cannot be read: Exceeds the limit" in problems[0].fault


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, 2 * MAX_LINE_BYTES + 2, 10_000_000])
def test_a_very_long_line_is_refused_and_the_next_one_read(tmp_path: Path, size: int) -> None:
    line = b'{"a": "' + b"x" * (size - 9) + b'"}'
    rows, problems = read(tmp_path, line + b'\n{"a": 1}\n')
    assert rows == [Row("pairs.jsonl:2", {"a": 1})]
    fault = "the line is longer than 4,000,000 bytes (one JSON object per line is read)"
    assert problems == [Problem("pairs.jsonl:1", fault)]


def test_the_longest_line_allowed_is_read(tmp_path: Path) -> None:
    line = b'{"a": "' + b"x" * (MAX_LINE_BYTES - 10) + b'"}\n'
    assert len(line) == MAX_LINE_BYTES
    rows, problems = read(tmp_path, line)
    assert len(rows) == 1
    assert problems == []


def as_array(texts: list[str], form: str) -> bytes:
    if form == "a line a row":
        return ("[\n" + ",\n".join(texts) + "\n]\n").encode()
    return f"[{', '.join(texts)}]".encode()


def test_entries_of_an_array_are_called_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    content = (
        b'\n[\n  {\n    "a": "x\xc3\xa9",\n    "b": [1, {"c": "]},{["}]\n  },\n\n  {"a": null}\n]\n'
    )
    first = {"a": "xé", "b": [1, {"c": "]},{["}]}
    rows = [Row("pairs.jsonl:3", first), Row("pairs.jsonl:8", {"a": None})]
    assert read(tmp_path, content) == (rows, [])
    assert read(tmp_path, b"\xef\xbb\xbf" + content) == (rows, [])


def test_entries_of_an_array_on_one_line_are_called_by_their_number(tmp_path: Path) -> None:
    rows = [Row("pairs.jsonl:row 1", {"a": 1}), Row("pairs.jsonl:row 2", {"a": 2})]
    assert read(tmp_path, b'[{"a": 1},{"a": 2}]') == (rows, [])


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, b" [ ] \n") == ([], [])


def test_bad_entries_of_an_array_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    entries = ['{"a": 0}', '{"a": 1, "a": 2}', "7", '{"a": NaN}', '{"a": "\\ud83d"}', '["x"]', "{}"]
    rows, problems = read(tmp_path, as_array(entries, "a line a row"))
    assert rows == [Row("pairs.jsonl:2", {"a": 0}), Row("pairs.jsonl:8", {})]
    assert problems == [
        Problem("pairs.jsonl:3", 'the key "a" is given twice in one object'),
        Problem("pairs.jsonl:4", "must be a JSON object, found a number"),
        Problem("pairs.jsonl:5", "not JSON: NaN is not a JSON value (write null)"),
        Problem("pairs.jsonl:6", '"a" holds half a character (a lone surrogate, \\ud83d)'),
        Problem("pairs.jsonl:7", "must be a JSON object, found a list"),
    ]


def test_a_byte_that_is_not_text_is_a_fault_of_its_entry(tmp_path: Path) -> None:
    rows, problems = read(tmp_path, b'[\n{"a": "caf\xe9"},\n{"a": "\xc3\xa9"}\n]')
    assert rows == [Row("pairs.jsonl:3", {"a": "é"})]
    assert problems == [Problem("pairs.jsonl:2", "not UTF-8: byte 0xe9")]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'[\n{"a": 1},\n{"a": 2', "not JSON: Expecting ',' delimiter at line 3, column 8"),
        (b'[\n{"a": 1},\n{"a": 2}', "the file is cut short: its array does not end"),
        (b'[\n{"a": 1},\n]', "not JSON: Expecting value at line 3, column 1"),
        (b'[\n{"a": 1}\n{"a": 2}]', "not JSON: expected ], found { at line 3, column 1"),
        (b'[{"a": 1}]\n{"a": 2}\n', "not JSON: something follows the array at line 2, column 1"),
        (b'[{"a": 1}, {"a": x}]', "not JSON: Expecting value at line 1, column 18"),
        (
            b'[{"a": "' + b"x" * (MAX_LINE_BYTES + 2_000_000) + b'"}]',
            "not JSON: longer than 4,000,000 characters, or Unterminated string starting "
            "at line 1, column 8",
        ),
        (b'[{"a": ' + b"[" * 200_000, "not JSON: nested too deeply at line 1, column 2"),
        (b'{\n  "train": []\n}', "holds one JSON object over several lines: write an array of"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_what_breaks_an_array_is_an_error_with_its_location(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    with pytest.raises(OrpoError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"pairs.jsonl: {fault}")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("form", ["a line a row", "one line"])
def test_an_array_is_read_the_same_wherever_blocks_end(size: int, form: str) -> None:
    rng = random.Random(size)
    letters = ['"', "\\", "\n", "é", "\U0001f600", "{", "]", ",", "\x00", "x"]
    rows = [
        {"".join(rng.choices(letters, k=3)): "".join(rng.choices(letters, k=9)), "n": [i / 7, None]}
        for i in range(40)
    ]
    texts = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    raw = as_array(texts, form)
    blocks = (raw[i : i + size] for i in range(0, len(raw), size))
    entries = list(iter_array(blocks))
    assert [entry.values for entry in entries] == rows
    locations = range(2, 42) if b"\n" in raw[:size].strip() else [f"row {i}" for i in range(1, 41)]
    assert [entry.location for entry in entries] == [str(location) for location in locations]


def test_a_long_array_is_read_within_bounded_memory() -> None:
    def blocks(rows: int) -> Iterator[bytes]:
        yield b"["
        for i in range(rows):
            yield (b"," if i else b"") + b'{"a": "' + b"x" * 20_000 + b'"}'
        yield b"]"

    tracemalloc.start()
    count = sum(1 for _ in iter_array(blocks(1_000)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_000
    assert peak < 2_000_000  # of 20 MB
