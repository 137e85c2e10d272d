"""Headers of safetensors files from elsewhere, and their folders, checked before use; `mx.load`
reads the tensors."""

import json
import math
import re
import shlex
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import check_regular
from orpo_mlx.tokenizer_files import TOKENIZER_FILES

INDEX = "model.safetensors.index.json"
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2,
    "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # what the library allows
MAX_INDEX_BYTES = 100_000_000
MAX_DIMENSIONS = 16
MAX_REASON = 200  # characters
MAX_LAYERS = 10_000
_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers")
_NAME = re.compile(r"[^\x00-\x1f\\]{1,512}")


class StoredTensor(NamedTuple):
    """A tensor as its file's header describes it; `start` and `stop` are offsets in bytes."""

    dtype: str  # a key of DTYPE_BYTES
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name, in the order of their bytes.

    Raises OrpoError if the file is damaged (the library checks that the tensors fill it, one
    after the other, each as large as its type and shape require) or a tensor is of an unknown kind.
    """
    check_regular(file)
    try:
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
        with safe_open(file, "numpy") as opened:
            views = [(name, opened.get_slice(name)) for name in opened.offset_keys()]
            entries = [(name, view.get_dtype(), tuple(view.get_shape())) for name, view in views]
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        reason = str(error)[:MAX_REASON]  # it quotes the file: repr escapes what is not printable
        raise OrpoError(
            f"{file} is damaged; safetensors reports {reason!r}. Download or copy it again."
        ) from None
    tensors, problems = {}, []
    for name, dtype, shape in entries:
        if problem := _problem(name, dtype, shape):
            problems.append(problem)
            continue
        stop = start + math.prod(shape) * DTYPE_BYTES[dtype]
        tensors[name] = StoredTensor(dtype, shape, start, stop)
        start = stop
    if problems:
        raise collected(f"{file} cannot be used:", problems)
    return tensors


def find_shards(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model folder, by the tensor's name.

    Follows the index where there is one. Raises OrpoError if it names what is not there, a file
    outside the folder, or if a tensor is in two files.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed(folder, index)
    shards: dict[str, Path] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        for name in read_header(file):
            if name in shards:
                raise OrpoError(f"{folder}: tensor {name} is in {shards[name].name}, {file.name}.")
            shards[name] = file
    if not shards:
        raise OrpoError(f"{folder}: no weights: no model*.safetensors there.")
    return shards


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name, of all files that mlx-lm reads; raises OrpoError."""
    files = {*find_shards(folder).values(), *folder.glob("model*.safetensors")}
    return {name: t for file in sorted(files) for name, t in read_header(file).items()}


def check_model_folder(folder: Path, named: str) -> None:
    """Raise OrpoError for pipes and Git LFS pointers among the files, and for impossible counts.

    `named` is how the user named the folder.
    """
    if has_magic(str(folder)):
        raise OrpoError(
            f"{named}: mlx-lm takes *, ? and [ in the name of a folder for a pattern. Rename it, "
            f"or make a link to it: ln -s {shlex.quote(str(folder.resolve()))} base"
        )
    weights = sorted(folder.glob("model*.safetensors"))
    for file in (folder / "config.json", *weights, *(folder / name for name in TOKENIZER_FILES)):
        check_regular(file)
    _check_layers(folder / "config.json", _count_tensors(weights))


def _problem(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    """Why a tensor that the format allows cannot be used here, or ""."""
    if not _NAME.fullmatch(name):
        return f"{name[:60]!r} is not a valid name of a tensor"
    if dtype not in DTYPE_BYTES:
        return f"{name}: its type is {dtype} (allowed: {', '.join(DTYPE_BYTES)})"
    if len(shape) > MAX_DIMENSIONS:
        return f"{name}: it has {len(shape)} dimensions (allowed: up to {MAX_DIMENSIONS})"
    return ""


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(placed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OrpoError(f"{index} is damaged ({error}).") from None
    problems, held = [], {}
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            problems.append(f"{name!r} is not the name of a file in that folder")
        elif not (folder / name).is_file():
            problems.append(f"{name} is not there")
        else:
            held[name] = set(read_header(folder / name))
    for tensor, name in placed.items():
        if name in held and tensor not in held[name]:
            problems.append(f"{name} has no tensor {tensor}")
    if problems:
        raise collected(f"{index} does not fit its folder:", problems)
    return {tensor: folder / name for tensor, name in placed.items()}


def _check_layers(file: Path, tensors: int | None) -> None:
    """Raise OrpoError for more layers than there are tensors: each would take memory and time."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # the loader says what is wrong with it
    most = MAX_LAYERS if tensors is None else min(MAX_LAYERS, tensors)
    for name, count in _layer_counts(config):
        if count > most:
            held = "" if tensors is None else f", and its files have {tensors:,} tensors"
            raise OrpoError(f"{file}: {name} is {count:,} (at most {MAX_LAYERS:,}{held}).")


def _layer_counts(config: Any) -> list[tuple[str, float]]:
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    return [
        (name, part[name])
        for part in parts
        if isinstance(part, dict)
        for name in _COUNTS
        if isinstance(part.get(name), int | float)
    ]


def _count_tensors(files: list[Path]) -> int | None:
    """How many tensors the files have; None without files, or if one cannot be read."""
    count = 0
    for file in files:
        try:
            with safe_open(file, "numpy") as opened:
                count += len(opened.keys())
        except (OSError, SafetensorError):
            return None
    return count or None
