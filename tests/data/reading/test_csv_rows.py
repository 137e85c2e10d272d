"""Records of CSV and TSV: text as written, each called by its line."""

import csv
import io
import random

import pytest

from orpo_mlx.data.reading.blocks import MAX_LINE_BYTES, DamagedError
from orpo_mlx.data.reading.csv_rows import iter_records


def read(text: str | bytes, *, tabs: bool = False) -> tuple[dict, dict]:
    """Values and faults by location."""
    raw = text.encode() if isinstance(text, str) else text
    entries = list(iter_records(raw.removesuffix(b"\n").split(b"\n"), tabs=tabs))
    rows = {entry.location: entry.values for entry in entries if not entry.fault}
    return rows, {entry.location: entry.fault for entry in entries if entry.fault}


def test_every_value_stays_text() -> None:
    rows, faults = read("prompt,chosen,rejected\n1,None,NA\ntrue,,  x \nnan,1e5,null\n")
    assert faults == {}
    assert rows == {
        "2": {"prompt": "1", "chosen": "None", "rejected": "NA"},
        "3": {"prompt": "true", "chosen": "", "rejected": "  x "},
        "4": {"prompt": "nan", "chosen": "1e5", "rejected": "null"},
    }


def test_a_record_over_several_lines_is_called_by_its_first() -> None:
    rows, faults = read('a,b\n"one\n\ntwo",x\n\nthree,"say ""hi"""\n')
    assert faults == {}
    assert rows == {"2": {"a": "one\n\ntwo", "b": "x"}, "6": {"a": "three", "b": 'say "hi"'}}


def test_windows_line_ends_and_a_byte_order_mark_leave_no_trace() -> None:
    rows, faults = read(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert (rows, faults) == ({"2": {"a": "1", "b": "2"}}, {})


def test_tabs_part_the_columns_of_tsv_and_semicolons_those_of_some_spreadsheets() -> None:
    row = {"2": {"a": "1,5;x", "b": "2"}}
    assert read("a\tb\n1,5;x\t2\n", tabs=True) == (row, {})
    assert read("a;b\n1,5;2\n") == ({"2": {"a": "1,5", "b": "2"}}, {})
    assert read("a;x,b\n1,2\n") == ({"2": {"a;x": "1", "b": "2"}}, {})


def test_bad_records_are_named_and_the_others_are_read() -> None:
    text = b'a,b\n1\n"x"y,2\n1,2,3\ncaf\xe9,1\n"a\n\xff",1\nin\rside,1\ngood,row\n'
    rows, faults = read(text)
    assert rows == {"9": {"a": "good", "b": "row"}}
    quote = "not CSV: text follows a closing quote (a quote inside a text is written twice)"
    assert faults == {
        "2": "1 field, but the header has 2 columns",
        "3": quote,
        "4": "3 fields, but the header has 2 columns",
        "5": "not UTF-8: byte 0xe9",
        "6": "not UTF-8: byte 0xff",
        "8": "not CSV: a carriage return is outside quotes",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\na,b\n", "line 1: the names of the columns are missing"),
        ("a,b,a\n1,2,3\n", 'line 1: the column "a" is in the header twice'),
        (b"caf\xe9,b\n1,2\n", "line 1: not UTF-8: byte 0xe9"),
        ('a,b\n1,2\n3,"open\n4,5\n', "line 3: a quote is opened here and not closed"),
        (f"a,b\n1,{'x' * MAX_LINE_BYTES}\n", "line 2: longer than 4,000,000 bytes"),
        (
            'a,b\n1,"' + ("x" * 1_000_000 + "\n") * 5,
            "line 2: a quote is opened here and not closed",
        ),
    ],
    ids=["blank", "double", "bytes", "open", "long line", "long field"],
)
def test_what_breaks_the_file_is_reported_with_its_line(text: str | bytes, fault: str) -> None:
    with pytest.raises(DamagedError) as error:
        read(text)
    assert str(error.value) == fault


def test_a_header_alone_and_an_empty_file_have_no_rows() -> None:
    assert read("a,b\n") == ({}, {})
    assert list(iter_records([], tabs=False)) == []


def test_what_csv_writes_is_read_back() -> None:
    rng = random.Random(5)
    cells = ["", "plain", 'a "quote"', "two\nlines", "tab\there", "comma, semi;", "\r\n", "\u2028é"]
    table = [{c: rng.choice(cells) for c in ("x", "y", "z")} for _ in range(300)]
    for tabs in (False, True):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, ["x", "y", "z"], delimiter="\t" if tabs else ",")
        writer.writeheader()
        writer.writerows(table)
        rows, faults = read(out.getvalue(), tabs=tabs)
        assert faults == {}
        assert list(rows.values()) == table
