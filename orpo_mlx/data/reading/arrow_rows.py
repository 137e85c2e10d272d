"""Parquet and Arrow files, a few hundred rows at a time."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orpo_mlx.data.reading.blocks import DamagedError

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
MEDIA = {"Image", "Audio", "Video", "Pdf", "Nifti"}  # features of Hugging Face datasets


class JsonObject(dict[str, Any]):
    """An object from JSON text in a column, whose nulls were written."""


def iter_batches(file: Path, *, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, at most `rows` and about `size` bytes at a time.

    Each batch owns its memory: pickling one sends what it holds and no more. Raises DamagedError
    for a file that cannot be read to its end, or with columns that are not read.
    """
    try:
        for batch in _open(file, rows):
            yield from _slices(batch, rows, size)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name not UTF-8
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DamagedError(f"the file is damaged ({reason})") from None


def parse_batch(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Each row's values, or what is wrong with it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        fault = "holds text that is not UTF-8"
    except (ValueError, OverflowError, pa.ArrowException) as error:  # a date in the year 20000
        fault = f"holds a value that cannot be read ({error})"
    else:
        yield from _decode_rows(rows, batch.schema)
        return
    if len(batch) == 1:
        yield None, fault
        return
    for i in range(len(batch)):
        yield from parse_batch(batch.slice(i, 1))


def _open(file: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with file.open("rb") as stream:
        magic = stream.read(8)
    if magic.startswith(PARQUET):
        table = pq.ParquetFile(
            file, memory_map=True, pre_buffer=False, page_checksum_verification=True
        )
        _check_schema(table.schema_arrow)
        return table.iter_batches(batch_size=rows, use_threads=False)
    source = pa.memory_map(str(file))
    if magic.startswith(ARROW_FILE):
        reader = pa.ipc.open_file(source)
        _check_schema(reader.schema)
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    # A stream that ends between two batches looks complete but for this mark.
    if source.read_at(8, max(0, source.size() - 8)) != END_OF_STREAM:
        raise DamagedError("the file is cut short: an Arrow stream without its end")
    reader = pa.ipc.open_stream(source)
    _check_schema(reader.schema)
    return iter(reader)


def _slices(batch: pa.RecordBatch, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    _check_values(batch)
    fitting = size * len(batch) // max(1, batch.nbytes)
    step = min(rows, max(1, fitting))
    for start in range(0, len(batch), step):
        yield pa.concat_batches([batch.slice(start, step)])


def _check_values(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid for offsets out of bounds: following one may crash the process.

    Text that is not UTF-8 is accepted: it is a fault of its row alone.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        # That fault may have hidden another: look at the rows apart.
        half = len(batch) // 2
        for part in (batch.slice(0, half), batch.slice(half)) if half else ():
            _check_values(part)


def _check_schema(schema: pa.Schema) -> None:
    """Raise DamagedError that names every column that is present twice, or holds files."""
    faults = [f'the column "{name}" is present twice' for name in _repeated_names(schema)]
    media = _media_features(schema) | {f.name for f in schema if _holds_files(f.type)}
    faults += [
        f'the column "{name}" holds images, audio or other files, which are not read '
        "(leave it out of the file)"
        for name in schema.names
        if name in media
    ]
    if faults:
        raise DamagedError("; ".join(faults))


def _repeated_names(parent: Any, path: str = "") -> list[str]:
    """Names that fields of a schema or type share, in structs too: a dict would keep one."""
    fields = _fields(parent)
    names = [field.name for field in fields]
    doubles = [f"{path}{name}" for name in dict.fromkeys(names) if names.count(name) > 1]
    for field in fields:
        doubles += _repeated_names(field.type, f"{path}{field.name}.")
    return doubles


def _fields(parent: Any) -> list[pa.Field]:
    count = len(parent) if isinstance(parent, pa.Schema) else parent.num_fields
    return [parent.field(i) for i in range(count)]


def _holds_files(kind: pa.DataType) -> bool:
    """Whether a column has the form in which datasets keep files: bytes next to a path."""
    fields = _fields(kind)
    names = {field.name: field.type for field in fields}
    if set(names) == {"bytes", "path"} and pa.types.is_binary(names["bytes"]):
        return True
    return any(_holds_files(field.type) for field in fields)


def _media_features(schema: pa.Schema) -> set[str]:
    written = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(written).get("info", {}).get("features") if written else None
    return {name for name, feature in (features or {}).items() if _is_media(feature)}


def _is_media(feature: Any) -> bool:
    if isinstance(feature, dict):
        return feature.get("_type") in MEDIA or any(map(_is_media, feature.values()))
    return isinstance(feature, list) and any(map(_is_media, feature))


def _column_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What parses the JSON texts in a column, at whatever depth; None where it has none."""
    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else json.loads(value, object_hook=JsonObject)
    if pa.types.is_struct(kind):
        inner = _decoders(_fields(kind))
        return (lambda value: value and _with(value, inner)) if inner else None
    if pa.types.is_nested(kind) and not pa.types.is_map(kind) and kind.num_fields == 1:
        decode = _column_decoder(kind.field(0).type)
        return (lambda value: value and [decode(item) for item in value]) if decode else None
    return None


def _decoders(fields: Iterable[pa.Field]) -> dict[str, Callable[[Any], Any]]:
    return {f.name: decode for f in fields if (decode := _column_decoder(f.type))}


def _with(row: dict[str, Any], decoders: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return row | {name: decode(row[name]) for name, decode in decoders.items()}


def _decode_rows(
    rows: list[dict[str, Any]], schema: pa.Schema
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    decoders = _decoders(schema)
    for row in rows:
        try:
            yield _with(row, decoders) if decoders else row, ""
        except ValueError as error:
            yield None, f"a column of JSON holds text that is not JSON ({error})"
