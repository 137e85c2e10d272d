"""Headers of safetensors files: what is damaged or unknown is refused."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.safetensors import DTYPE_BYTES, StoredTensor, read_header

BYTES = bytes(range(16))


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def save(folder: Path, header: dict[str, Any] | bytes, data: bytes = BYTES) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_tensor_of_each_type_is_read_with_its_offsets(tmp_path: Path, dtype: str) -> None:
    size = 6 * DTYPE_BYTES[dtype]
    header = {
        "late": entry(dtype, [2, 3], [4, 4 + size]),
        "scalar": entry("F32", [], [0, 4]),
        "empty": entry(dtype, [0, 3], [4 + size, 4 + size]),
    }
    file = save(tmp_path, header, bytes(4 + size))
    start = file.stat().st_size - size
    assert read_header(file) == {
        "scalar": StoredTensor("F32", (), start - 4, start),
        "late": StoredTensor(dtype, (2, 3), start, start + size),
        "empty": StoredTensor(dtype, (0, 3), start + size, start + size),
    }


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry()}, BYTES[:-1]),
        ({"a": entry()}, BYTES + b"x"),
        ({"a": entry(), "b": entry(offsets=[8, 24])}, BYTES + BYTES[:8]),
        ({"a": entry(), "b": entry()}, BYTES),
        ({"a": entry(), "b": entry(offsets=[20, 36])}, BYTES + BYTES + b"gap."),
        ({"a": entry(shape=[2, 3])}, BYTES),
        ({"a": entry(shape=[-2, -2])}, BYTES),
        ({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b""),
        ({"a": entry(offsets=[16, 0])}, BYTES),
        ({"a": entry(dtype="Q4")}, BYTES),
        ({"a": entry(dtype="\x1b[31m" + "x" * 10_000)}, BYTES),
        ({"a": []}, BYTES),
        (b"[" * 100_000, b""),
        (b'{"\xff": {}}', b""),
        (b"null", b""),
    ],
    ids=[
        "cut", "longer", "overlap", "twice", "gap", "size", "negative", "overflow", "backwards",
        "dtype", "escape", "list", "deep", "bytes", "null",
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_the_library_reports(
    tmp_path: Path, header: Any, data: bytes
) -> None:
    file = save(tmp_path, header, data)
    with pytest.raises(OrpoError) as error:
        read_header(file)
    text = str(error.value)
    assert text.startswith(f"{file} is damaged; safetensors reports ")
    assert text.endswith(". Download or copy it again.")
    assert text.isprintable()
    assert len(text) < len(str(file)) + 400


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**31, 2**63, 2**64 - 1])
def test_another_length_of_the_header_is_damage(tmp_path: Path, length: int) -> None:
    file = save(tmp_path, {"a": entry()})
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(OrpoError, match="is damaged; safetensors reports"):
        read_header(file)


def test_all_tensors_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    header = {
        "a\x1b[31m": entry("U8", [4], [0, 4]),
        "n" * 600: entry("U8", [4], [4, 8]),
        "small": entry("F4", [8], [8, 12]),
        "deep": entry("U8", [1] * 16 + [4], [12, 16]),
    }
    with pytest.raises(OrpoError) as error:
        read_header(save(tmp_path, header))
    first, *problems = str(error.value).splitlines()
    assert first.endswith("model.safetensors cannot be used:")
    assert problems[0] == "  'a\\x1b[31m' is not a valid name of a tensor"
    assert problems[1] == f"  {'n' * 60!r} is not a valid name of a tensor"
    assert problems[2].startswith("  small: its type is F4 (allowed: BOOL, U8, ")
    assert problems[3] == "  deep: it has 17 dimensions (allowed: up to 16)"


@pytest.mark.parametrize("last", ["F16", "F32"])
def test_of_two_tensors_of_one_name_mlx_reads_the_one_that_was_checked(
    tmp_path: Path, last: str
) -> None:
    kinds = {"F16": entry("F16", [2, 4]), "F32": entry("F32", [2, 2])}
    first = "F32" if last == "F16" else "F16"
    text = f'{{"a": {json.dumps(kinds[first])}, "a": {json.dumps(kinds[last])}}}'
    file = save(tmp_path, text.encode())
    stored, loaded = read_header(file)["a"], mx.load(str(file))["a"]
    assert (stored.dtype, stored.shape) == (last, tuple(kinds[last]["shape"]))
    assert loaded.shape == stored.shape
    assert loaded.nbytes == stored.size_bytes


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match="cannot be read: Is a directory"):
        read_header(tmp_path)
    with pytest.raises(OrpoError, match="cannot be read: No such file"):
        read_header(tmp_path / "none")
