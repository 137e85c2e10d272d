"""Which files of a folder are meant for others, and what of them is private to this machine."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from orpo_mlx.data.reading import splits
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import LOCK
from orpo_mlx.model.base import has_weights
from orpo_mlx.model.safetensors import INDEX, find_shards, read_header
from orpo_mlx.public_names import PATH_KEYS, public_name, without_paths
from orpo_mlx.run_folder.folder import ADAPTER, CONFIG, METRICS
from orpo_mlx.tokenizer_files import SAVED_OBJECT, TOKENIZER_FILES, readable_config
from orpo_mlx.yaml_files import read_yaml

WEIGHTS, ADAPTER_CONFIG = ADAPTER
PEFT_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
# Next to an adapter: settings, metrics and tokenizer, without which it is not used as it was made.
RUN_PARTS = (ADAPTER_CONFIG, CONFIG, METRICS, *TOKENIZER_FILES)
MODEL_PARTS = (
    "config.json",
    INDEX,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    *TOKENIZER_FILES,
)
SHIPPED_DATA = ("jsonl", "parquet")
Kind = Literal["adapter", "peft adapter", "model", "dataset"]


class Upload(NamedTuple):
    """A file of the repo: a file here, or its content."""

    path: str
    source: Path | bytes

    @property
    def size_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


def folder_kind(folder: Path) -> Kind:
    """What a folder or file holds; raises OrpoError if it is nothing that can be pushed."""
    if not folder.exists():
        raise OrpoError(f"{folder}: no such folder (from {Path.cwd()}).")
    if folder.is_file():
        if splits.data_kind(folder.name) in SHIPPED_DATA:
            return "dataset"
        raise OrpoError(
            f"{folder}: a single file is pushed only if it holds pairs, as .jsonl or .parquet."
        )
    if (folder / WEIGHTS).is_file():
        return "adapter"
    if (folder / PEFT_WEIGHTS).is_file():
        return "peft adapter"
    if (folder / "config.json").is_file() and has_weights(folder):
        return "model"
    if data_files(folder):
        return "dataset"
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise OrpoError(
        f"{folder} holds nothing to push (found: {names}). An adapter has {WEIGHTS}, a model "
        "config.json and model.safetensors, pairs are .jsonl or .parquet files."
    )


def adapter_uploads(folder: Path, weights: str, prefix: str, scrub: "PathScrubber") -> list[Upload]:
    """An adapter's files, without private paths; raises OrpoError if its weights are damaged."""
    read_header(folder / weights)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise OrpoError(
            f"{folder}: no {ADAPTER_CONFIG} next to {weights}: the adapter is incomplete."
        )
    return [scrub(file, prefix) for file in _named(folder, (weights, *RUN_PARTS))]


def model_uploads(folder: Path, scrub: "PathScrubber") -> list[Upload]:
    """The files of a model folder; raises OrpoError if its weights are damaged."""
    shards = sorted(find_shards(folder).headers)
    return [scrub(file, "") for file in [*_named(folder, MODEL_PARTS), *shards]]


def dataset_uploads(source: Path) -> list[Upload]:
    """The files of a set of pairs, with their folder `data`, as they are."""
    if source.is_file():
        return [Upload(source.name, source)]
    return [Upload(file.relative_to(source).as_posix(), file) for file in data_files(source)]


def data_files(folder: Path) -> list[Path]:
    """Files of pairs in a folder or its folder `data`."""
    files = [
        file
        for parent in (folder, folder / "data")
        for file in (sorted(parent.iterdir()) if parent.is_dir() else [])
        if file.is_file() and splits.data_kind(file.name) in SHIPPED_DATA
    ]
    return [file for file in files if not file.name.startswith(".") and file.name != METRICS]


def left_out(folder: Path, uploads: Sequence[Upload]) -> list[str]:
    """What else lies in the folder, by name, but for the lock of a run."""
    if folder.is_file():
        return []
    used = {Path(u.path).parts[0] for u in uploads} | {Path(u.path).name for u in uploads}
    names = (p.name + "/" * p.is_dir() for p in sorted(folder.iterdir()))
    return [name for name in names if name.rstrip("/") not in {*used, CARD, LOCK}]


def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those files, and those in folders of that name, that are there."""
    files = []
    for path in (folder / name for name in names):
        inner = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in inner if file.is_file() and not file.name.startswith(".")]
    return files


class PathScrubber(NamedTuple):
    """Makes uploads of a folder's files, without the paths of this machine in them."""

    folder: Path
    base: str  # what the base is called on the Hub, or its folder's name

    def __call__(self, file: Path, prefix: str) -> Upload:
        path = prefix + file.relative_to(self.folder).as_posix()
        if file.name in (ADAPTER_CONFIG, CONFIG):
            return Upload(path, self._rewritten(file, self._settings))
        if file.suffix == ".json" and file.name not in ("tokenizer.json", "vocab.json", INDEX):
            return Upload(path, self._rewritten(file, _public))
        return Upload(path, file)

    def _rewritten(self, file: Path, change: Callable[[Any], Any]) -> Path | bytes:
        """The file itself if nothing in it is private."""
        is_yaml = file.suffix == ".yaml"
        try:
            values = (
                read_yaml(file).content if is_yaml else json.loads(file.read_text(encoding="utf-8"))
            )
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise OrpoError(f"{file} is damaged ({' '.join(str(error).split())}).") from None
        changed = change(values)
        if changed == values:
            return file
        if is_yaml:
            return str(yaml.safe_dump(changed, sort_keys=False)).encode()
        return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()

    def _settings(self, values: Any) -> Any:
        """Settings of a run or an adapter: every local path by its name, the base by its own."""
        if not isinstance(values, dict):
            return values
        named = {
            key: self.base for key in ("model", *PATH_KEYS) if isinstance(values.get(key), str)
        }
        return {**{key: public_name(value) for key, value in values.items()}, **named}


def _public(values: Any) -> Any:
    """What a JSON file holds, without paths; a saved tokenizer as transformers 4 reads it."""
    saved = isinstance(values, dict) and SAVED_OBJECT & values.keys()
    return without_paths(readable_config(values) if saved else values)
