"""Content of files, packed or not, and its lines."""

import gzip
import re
import sys
from pathlib import Path

import pytest
import zstandard

from orpo_mlx.data.reading.blocks import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    DamagedError,
    bad_byte,
    iter_blocks,
    iter_lines,
)
from orpo_mlx.errors import OrpoError
from orpo_mlx.install_advice import pip_install

TEXT = b"".join(b"line %d of many\n" % i for i in range(200_000))
PACK = {"gz": gzip.compress, "zst": zstandard.compress}


def content(file: Path, packed: bytes) -> bytes:
    file.write_bytes(packed)
    return b"".join(iter_blocks(file))


def test_a_plain_file_is_given_as_it_is(tmp_path: Path) -> None:
    assert content(tmp_path / "a.jsonl", TEXT) == TEXT
    assert content(tmp_path / "empty.jsonl", b"") == b""


@pytest.mark.parametrize("kind", PACK)
def test_what_is_packed_is_unpacked_whatever_its_name(tmp_path: Path, kind: str) -> None:
    assert content(tmp_path / "a.jsonl", PACK[kind](TEXT)) == TEXT
    assert content(tmp_path / f"plain.{kind}", TEXT) == TEXT


@pytest.mark.parametrize("kind", PACK)
def test_members_that_follow_one_another_are_one_content(tmp_path: Path, kind: str) -> None:
    packed = PACK[kind](b"one\n") + PACK[kind](b"") + PACK[kind](b"two\n")
    assert content(tmp_path / "a", packed) == b"one\ntwo\n"


def test_zeros_after_a_gzip_are_padding(tmp_path: Path) -> None:
    assert content(tmp_path / "a", gzip.compress(b"one\n") + bytes(1000)) == b"one\n"


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("left_out", [1, 8, 1000])
def test_a_packed_file_without_its_end_is_cut_short(
    tmp_path: Path, kind: str, left_out: int
) -> None:
    with pytest.raises(DamagedError, match="^the file is cut short$"):
        content(tmp_path / "a", PACK[kind](TEXT)[:-left_out])


@pytest.mark.parametrize("kind", PACK)
def test_a_changed_byte_of_a_packed_file_is_damage(tmp_path: Path, kind: str) -> None:
    pack = PACK[kind] if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(TEXT))
    packed[len(packed) // 2] ^= 0x55
    with pytest.raises(DamagedError, match=r"^the file is (damaged \(.+\)|cut short)$"):
        content(tmp_path / "a", bytes(packed))


def test_zstandard_is_named_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(OrpoError, match="zstandard is needed .* " + re.escape(pip_install("zst"))):
        content(tmp_path / "a.jsonl.zst", zstandard.compress(TEXT))


def test_blocks_of_a_packed_file_stay_small(tmp_path: Path) -> None:
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(bytes(range(256)) * 400_000))  # 100 MB
    assert max(map(len, iter_blocks(file))) < 20_000_000


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_wherever_blocks_end(size: int) -> None:
    text = b"\none\r\n\ntwo three\n\n\xc3\xa9\nlast"
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(iter_lines(blocks)) == text.split(b"\n")
    assert list(iter_lines([*blocks, b"\n"])) == text.split(b"\n")


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    lines = list(iter_lines([b"x" * BLOCK_BYTES] * 12 + [b"\nnext\n"]))
    assert [len(line) for line in lines] == [MAX_LINE_BYTES + 1, 4]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"plain", ""),
        ("h\u00e4, \U0001f600".encode(), ""),
        (b"caf\xe9", "not UTF-8: byte 0xe9"),
        (b"\x80", "not UTF-8: byte 0x80"),
    ],
)
def test_a_byte_that_is_not_text_is_located(raw: bytes, fault: str) -> None:
    assert bad_byte(raw.decode("utf-8", "surrogateescape")) == fault
