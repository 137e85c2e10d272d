"""Headers of safetensors files from elsewhere, and their folders, checked before use; `mx.load`
reads the tensors."""

import json
import math
import re
import shlex
from collections import Counter
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.files import check_regular
from orpo_mlx.tokenizer_files import TOKENIZER_FILES

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
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


class Shards(NamedTuple):
    """Which file of a model folder holds each tensor, as transformers chooses them."""

    files: dict[str, Path]  # by the tensor's name
    headers: dict[Path, dict[str, StoredTensor]]
    strays: list[str]  # files of weights that are not part of the model
    indexed: bool

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by name, in the order of the files' names."""
        return {
            name: tensor
            for file, header in sorted(self.headers.items())
            for name, tensor in header.items()
            if self.files[name] == file
        }

    def repeated(self) -> dict[str, Path]:
        """The file of each tensor that another file has too."""
        count = Counter(name for header in self.headers.values() for name in header)
        return {name: self.files[name] for name, times in count.items() if times > 1}


def find_shards(folder: Path) -> Shards:
    """The files of a model folder: those of its index, else model.safetensors, else all shards.

    Raises OrpoError if the index names what is not there or a file outside the folder, or if
    without an index a tensor is in two files.
    """
    there = sorted(folder.glob("model*.safetensors"))
    index = folder / INDEX
    if index.is_file():
        files, headers = _indexed(folder, index)
    else:
        files, headers = _unindexed(folder, there)
    strays = [file.name for file in there if file not in headers]
    return Shards(files, headers, strays, index.is_file())


def stray_notices(folder: Path, shards: Shards) -> list[str]:
    """Sentences about weights in a folder that are not part of its model."""
    notices = []
    if shards.strays:
        named = ", ".join(shards.strays[:3]) + (" ..." if len(shards.strays) > 3 else "")
        by = f"{INDEX} names others" if shards.indexed else f"{SINGLE} holds the model"
        notices.append(f"{folder}: {named} not read: {by}. Remove what does not belong there.")
    if shards.indexed and SINGLE in shards.strays:
        notices.append(f"{folder}: transformers would read {SINGLE} instead of the index.")
    if repeated := shards.repeated():
        name, file = next(iter(sorted(repeated.items())))
        notices.append(
            f"{folder}: {len(repeated)} tensors are in two files, {name} among them: read from "
            f"{file.name}, which {INDEX} names."
        )
    return notices


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder by name; raises OrpoError as `find_shards`."""
    return find_shards(folder).tensors


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


def _unindexed(
    folder: Path, there: list[Path]
) -> tuple[dict[str, Path], dict[Path, dict[str, StoredTensor]]]:
    single = folder / SINGLE
    headers = {file: read_header(file) for file in ([single] if single in there else there)}
    files: dict[str, Path] = {}
    for file, header in headers.items():
        for name in header:
            if name in files:
                raise OrpoError(f"{folder}: tensor {name} is in {files[name].name}, {file.name}.")
            files[name] = file
    if not headers:
        raise OrpoError(f"{folder}: no weights: no model*.safetensors there.")
    return files, headers


def _indexed(
    folder: Path, index: Path
) -> tuple[dict[str, Path], dict[Path, dict[str, StoredTensor]]]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(placed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OrpoError(f"{index} is damaged ({error}).") from None
    if names == {SINGLE} and (folder / SINGLE).is_file():
        return _unindexed(folder, [folder / SINGLE])  # transformers then asks no index
    problems, headers = [], {}
    for name in sorted(map(str, names)):
        if Path(name).name != name or not name.endswith(".safetensors"):
            problems.append(f"{name!r} is not the name of a file in that folder")
        elif not (folder / name).is_file():
            problems.append(f"{name} is not there")
        else:
            headers[folder / name] = read_header(folder / name)
    for tensor, name in placed.items():
        if folder / str(name) in headers and tensor not in headers[folder / name]:
            problems.append(f"{name} has no tensor {tensor}")
    if problems:
        if (folder / SINGLE).is_file():
            problems.append(f"If {SINGLE} is the whole model, remove {INDEX}.")
        raise collected(f"{index} does not fit its folder:", problems)
    # What a named file holds and the index omits is read, too: so do transformers and mlx-lm.
    held = {tensor: file for file, header in headers.items() for tensor in header}
    return held | {tensor: folder / name for tensor, name in placed.items()}, headers


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
