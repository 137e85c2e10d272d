"""Rows of pairs on a disk that fills up, forgets or changes them."""

import errno
import os
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from orpo_mlx.run_folder.pair_file import SUMS_OF_PAIRS, PairFile

FACTS = {"data": "abc"}
STARTS = np.array([0, 3, 3000, 3001, 5000])
WIDTH = 32


def open_file(folder: Path) -> PairFile:
    return PairFile(folder / "trunk", FACTS, STARTS, np.uint16, WIDTH)


def rows_of(index: int) -> np.ndarray:
    shape = (STARTS[index + 1] - STARTS[index], WIDTH)
    return np.random.default_rng(index).integers(0, 2**16, shape, dtype=np.uint16)


def same(kept: np.ndarray | None, index: int) -> bool:
    return kept is not None and np.array_equal(kept, rows_of(index))


def test_rows_come_back_in_this_process_and_in_the_next(tmp_path: Path) -> None:
    file = open_file(tmp_path)
    for index in (2, 0, 1):
        assert (file.has(index), file.read(index)) == (False, None)
        file.write(index, rows_of(index))
        assert same(file.read(index), index)
    file.flush()
    again = open_file(tmp_path)
    assert [again.has(index) for index in range(4)] == [True, True, True, False]
    assert all(same(again.read(index), index) for index in range(3))
    assert (tmp_path / "trunk" / "states.bin").read_bytes()[:192] == rows_of(0).tobytes()


def test_rows_that_were_not_flushed_are_not_there_in_the_next_process(tmp_path: Path) -> None:
    open_file(tmp_path).write(0, rows_of(0))
    assert not open_file(tmp_path).has(0)


@pytest.mark.parametrize("byte", [0, 5, 191])
def test_a_bit_that_has_changed_is_seen_at_the_first_read_of_its_pair(
    tmp_path: Path, byte: int
) -> None:
    file = open_file(tmp_path)
    for index in range(4):
        file.write(index, rows_of(index))
    file.flush()
    content = bytearray(file.states.read_bytes())
    content[byte] ^= 16
    file.states.write_bytes(content)
    again = open_file(tmp_path)
    assert again.has(0)
    assert again.read(0) is None
    assert all(same(again.read(index), index) for index in (1, 2, 3))
    again.write(0, rows_of(0))
    assert same(again.read(0), 0)


def test_a_pair_is_compared_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_file(tmp_path)
    file.write(0, rows_of(0))
    file.write(1, rows_of(1))
    compared: list[int] = []
    crc32 = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda rows: compared.append(len(rows)) or crc32(rows))
    for index in (0, 1, 0, 1, 1):
        assert same(file.read(index), index)
    assert compared == [3, 2997]


@pytest.mark.parametrize("change", ["facts", "size", "sums", "no sums", "as version 0.1"])
def test_a_folder_that_does_not_fit_is_emptied(tmp_path: Path, change: str) -> None:
    file = open_file(tmp_path)
    file.write(0, rows_of(0))
    file.flush()
    folder = tmp_path / "trunk"
    if change == "facts":
        (folder / "facts.json").write_text('{"data": "other"}')
    elif change == "size":
        (folder / "states.bin").write_bytes(b"")
    elif change == "sums":
        (folder / SUMS_OF_PAIRS).write_bytes(b"1234567")
    else:
        (folder / SUMS_OF_PAIRS).unlink()
    if change == "as version 0.1":  # which had no checksums
        with (folder / "filled.npy").open("wb") as stream:
            np.save(stream, np.ones(4, dtype=bool))
    again = open_file(tmp_path)
    assert not any(again.has(index) for index in range(4))
    assert sorted(p.name for p in folder.iterdir()) == ["facts.json", "states.bin"]


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = os.pwrite, []

    def short(descriptor: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        return true(descriptor, content[: 100_000 if len(calls) > 1 else 7], offset)

    monkeypatch.setattr(os, "pwrite", short)
    file = open_file(tmp_path)
    file.write(1, rows_of(1))
    assert calls == [192, 199, 100_199]
    assert same(file.read(1), 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, 0])
def test_a_write_that_fails_is_an_error_and_the_pair_is_not_there(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = os.pwrite, []

    def full(descriptor: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return true(descriptor, content[:50], offset)
        if code:
            raise OSError(code, os.strerror(code))
        return 0  # as some file systems do

    file = open_file(tmp_path)
    file.write(0, rows_of(0))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError) as caught:
        file.write(1, rows_of(1))
    assert caught.value.errno == (code or errno.ENOSPC)
    assert len(calls) == 2
    assert not file.has(1)
    assert same(file.read(0), 0)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit of the system; Python has SIGXFSZ ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_truly_takes_no_more_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    file = open_file(tmp_path)
    # In the middle of pair 1: the system takes what fits, then refuses.
    with largest_file(100_000), pytest.raises(OSError) as caught:
        file.write(1, rows_of(1))
    assert caught.value.errno == errno.EFBIG
    assert file.states.read_bytes()[192:100_000] == rows_of(1).tobytes()[: 100_000 - 192]
    assert not file.has(1)
    with largest_file(100_000):
        file.write(0, rows_of(0))
    assert same(file.read(0), 0)


def test_a_file_system_that_has_no_room_for_the_length_is_an_error_at_the_start(
    tmp_path: Path,
) -> None:
    with largest_file(100_000), pytest.raises(OSError) as caught:
        open_file(tmp_path)
    assert caught.value.errno == errno.EFBIG
