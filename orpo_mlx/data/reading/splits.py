"""Which files of a folder make a split: files named by it, or a data set that was saved."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError

SPLITS = ("train", "valid", "test")
OTHER_NAMES = {"valid": ("valid", "validation", "val", "dev", "eval")}
TEXT_KINDS = ("json", "jsonl", "ndjson", "csv", "tsv")
TABLE_KINDS = ("parquet", "arrow")
DATA_NAME = re.compile(
    rf"(?P<stem>.+)\.(?P<kind>({'|'.join(TEXT_KINDS)})(\.gz|\.zst)?|{'|'.join(TABLE_KINDS)})",
    re.IGNORECASE,
)
# train, train-00000-of-00002, train_prefs-00000-of-00001-1a2b3c4d5e6f, train_3
SHARD_NAME = re.compile(
    r"(?P<split>.+?)([-_.](?P<shard>\d+)(-of-(?P<total>\d+)(-[0-9a-f]{8,})?)?)?"
)
SAVED_DICT, SAVED_STATE = "dataset_dict.json", "state.json"


class NoSplitError(OrpoError):
    """A source does not have the split."""


def choose_split(present: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted splits that is there, with `_prefs` after its name or without."""
    present = list(present)
    names = (name for split in wanted for name in OTHER_NAMES.get(split, (split,)))
    endings = (name + ending for name in names for ending in ("_prefs", ""))
    return next((name for name in endings if name in present), None)


def usual_name(split: str) -> str:
    """`valid` for dev or validation; other names as they are."""
    return next((name for name, names in OTHER_NAMES.items() if split in names), split)


def pick_split(
    present: Sequence[str],
    wanted: Sequence[str],
    split: str | None,
    log: Callable[[str], None] = lambda text: None,
) -> str:
    """`split` if it is there, else the first of the wanted; raises OrpoError that names all."""
    names = ", ".join(present) or "none"
    if split is not None and split not in present:
        raise NoSplitError(f"no split named {split} (found: {names}).")
    chosen = split or choose_split(present, wanted)
    if chosen is None:
        raise NoSplitError(f"no split named {' or '.join(wanted)} (found: {names}). Use --split.")
    if split is None and len(present) > 1:
        log(f"split {chosen} is read (found: {names})")
    return chosen


def data_kind(name: str) -> str:
    """The kind of file that a name promises, without its compression; "" for none that is read."""
    named = DATA_NAME.fullmatch(name)
    return named["kind"].lower().partition(".")[0] if named else ""


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face datasets made the folder."""
    return (folder / SAVED_DICT).is_file() or (folder / SAVED_STATE).is_file()


def pick_saved(
    folder: Path, wanted: Sequence[str], split: str | None, log: Callable[[str], None]
) -> tuple[str, list[Path]]:
    """A split of a saved data set, and its files; a single one is read whatever its name."""
    if (folder / SAVED_DICT).is_file():
        present = [str(name) for name in _saved_json(folder / SAVED_DICT).get("splits") or []]
        chosen = pick_split(present, wanted, split, log)
        return chosen, _saved_files(folder / chosen)
    own = str(_saved_json(folder / SAVED_STATE).get("_split") or "train")
    return pick_split([own], [own], split), _saved_files(folder)


def files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The data files of a folder by the split in their names; those in `data/` come second."""
    return _files_in(folder / "data") | _files_in(folder)


def sort_shards(files: Sequence[Path]) -> list[Path]:
    """The files of a split in order; raises OrpoError for missing shards or two formats."""
    parts = [_parts(file) for file in files]
    folder, names = files[0].parent, ", ".join(sorted(file.name for file in files)[:8])
    forms = {(part.kind, part.shard is None, part.total) for part in parts}
    if len(forms) > 1:
        raise OrpoError(f"{folder}: more than one format for one split ({names}). Name the file.")
    total = parts[0].total
    if total and len(files) != total:
        few = len(files) < total
        raise OrpoError(
            f"{folder}: {len(files)} of {total} shards are there ({names}). "
            + ("Copy or download the others." if few else "Name the files.")
        )
    return sorted(files, key=lambda file: (_parts(file).shard or 0, file.name))


class _Parts(NamedTuple):
    split: str
    shard: int | None
    total: int | None
    kind: str


def _parts(file: Path) -> _Parts:
    """What the name of a data file says."""
    name = DATA_NAME.fullmatch(file.name)
    assert name
    stem = SHARD_NAME.fullmatch(name["stem"])
    assert stem
    shard, total = (int(stem[key]) if stem[key] else None for key in ("shard", "total"))
    return _Parts(stem["split"], shard, total, name["kind"].lower())


def _files_in(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if data_kind(file.name) and file.is_file():
            splits.setdefault(_parts(file).split, []).append(file)
    return splits


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files that the state names, in its order.

    The state's format is ignored: it is how rows are returned, not which there are.
    """
    state = _saved_json(folder / SAVED_STATE)
    if state.get("_indices_data_files"):
        raise OrpoError(
            f"{folder}: was saved with a selection of rows by an old version of datasets. Load it "
            "with that version and save it again after flatten_indices()."
        )
    names = [entry.get("filename", "") for entry in state.get("_data_files", [])]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise OrpoError(
            f"{folder}: {SAVED_STATE} names files that are not there: "
            f"{', '.join(missing[:8]) or 'none at all'}."
        )
    return [folder / name for name in names]


def _saved_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OrpoError(f"{file}: cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise OrpoError(f"{file}: must hold a JSON object.")
    return values
