"""Raw rows from files, each with its file and line. Knows nothing of what the rows mean."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.reading import hub_sets
from orpo_mlx.data.reading import splits as reading_splits
from orpo_mlx.data.reading.blocks import DamagedError
from orpo_mlx.data.reading.files import iter_contents, parse_rows
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.splits import NoSplitError
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import name_and_number, user_path

CHUNK_ROWS = 250
CHUNK_BYTES = 4_000_000
_ROW = {"prompt": "How do I ...?", "chosen": "First ..."}
PREVIEW_HINT = "A row looks like: " + json.dumps(_ROW | {"rejected": "No idea."})
SFT_PREVIEW_HINT = "A row of --sft-data looks like: " + json.dumps(_ROW)


class Row(NamedTuple):
    """One row of a source; `location` is file:line, or file:row 17 where rows have no lines.

    `is_padded`: a table's structs have the same keys in every row, null where a row had none.
    """

    location: str
    values: dict[str, Any]
    is_padded: bool = False


class Source(NamedTuple):
    """Files of one source, in order.

    `name` is what the user wrote, without the weight; `labels` is how each file is called in
    locations. Files of one label are shards of one table: their row numbers run on.
    """

    name: str
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    weight: float = 1.0


class Chunk(NamedTuple):
    """Consecutive raw rows of one file; `first` is the line or row number of the first.

    `content` holds lines as bytes, or (location, values), or is a pyarrow.RecordBatch.
    """

    label: str
    first: int
    content: Any


class _Selection(NamedTuple):
    """What is read of a source that has splits, subsets or revisions."""

    splits: Sequence[str]
    split: str | None
    subset: str | None
    revision: str | None


def find_sources(
    sources: Sequence[str],
    *,
    splits: Sequence[str],
    flag: str = "--data",
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> list[Source]:
    """What sources name: files, globs, folders, saved data sets and ids of the Hub.

    Of a source with splits, `split` is read, or the first of `splits` that it has. Raises OrpoError
    for all sources that name no rows.
    """
    selection = _Selection(splits, split, subset, revision)
    resolved: list[Source] = []
    problems, empty = [], []
    kinds = set[type[OrpoError]]()
    for text in sources:
        try:
            source = _find(text, selection, log)
            empty += _empty_files(source)
            problems += [f"{flag} {fault}" for fault in _repeated_files(source, resolved)]
            resolved.append(source)
        except OrpoError as error:
            problems.append(f"{flag} {error}")
            kinds.add(type(error))
        except OSError as error:
            problems.append(f"{flag} {text}: cannot be read ({error.strerror}).")
            kinds.add(OrpoError)
    if empty:
        problems += [*(f"{flag} {file}: the file is empty." for file in empty), PREVIEW_HINT]
    if problems:
        kind = kinds.pop() if len(kinds) == 1 and not empty else OrpoError
        raise kind("\n".join(problems))
    return resolved


def check_parts(
    sources: Sequence[str],
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
) -> None:
    """Raise OrpoError for --split, --subset or --data-revision where no source has any."""
    paths = [user_path(name_and_weight(source)[0]) for source in sources]
    on_hub = any(is_hub_source(str(path)) for path in paths)
    in_parts = on_hub or any(path.is_dir() for path in paths)
    unused = []
    if split and not in_parts:
        unused.append(f"--split {split}: no source here has splits, files have none.")
    for flag, value in (("--subset", subset), ("--data-revision", revision)):
        if value and not on_hub:
            unused.append(f"{flag} {value}: no source here is a data set of the Hub.")
    if unused:
        raise OrpoError("\n".join(unused))


def held_out_sources(sources: Sequence[str], *, splits: Sequence[str], **how: Any) -> list[Source]:
    """The first of `splits` of those sources that have splits, where they have it.

    `how` is that of find_sources, and what is raised, too.
    """
    resolved = []
    for source in sources:
        name, _ = name_and_weight(source)
        if user_path(name).is_dir() or is_hub_source(name):
            with suppress(NoSplitError):
                resolved += find_sources([name], splits=splits, **how)
    return resolved


def iter_rows(source: Source, report: ReadReport) -> Iterator[Row]:
    """The rows of a source; what is wrong with one is kept in the report."""
    for chunk in iter_chunks(source, report):
        yield from rows_of(chunk, report)


def iter_chunks(source: Source, report: ReadReport) -> Iterator[Chunk]:
    """The rows of a source, at most CHUNK_ROWS and about CHUNK_BYTES at a time, not yet parsed.

    Raises OrpoError for a file that cannot be read to its end.
    """
    passed: Counter[str] = Counter()
    for file, label in zip(source.files, source.labels, strict=True):
        before = passed[label]
        try:
            for first, rows, faults in iter_contents(file, rows=CHUNK_ROWS, size=CHUNK_BYTES):
                for location, fault in faults:
                    report.refuse(f"{label}:{location}", fault)
                if len(rows):
                    yield Chunk(label, before + first, rows)
                    passed[label] = before + first + len(rows) - 1
        except DamagedError as error:
            raise OrpoError(f"{label}: {error}.") from None
        except OSError as error:
            raise OrpoError(f"{label}: cannot be read ({error.strerror}).") from None


def rows_of(chunk: Chunk, report: ReadReport) -> Iterator[Row]:
    """The rows of a chunk; what is wrong with one is kept in the report."""
    for location, values, fault in parse_rows(chunk.content, chunk.first):
        if fault:
            report.refuse(f"{chunk.label}:{location}", fault)
        elif values is not None:
            yield Row(f"{chunk.label}:{location}", values, not isinstance(chunk.content, list))


def _find(text: str, selection: _Selection, log: Callable[[str], None]) -> Source:
    """The source that a text names; raises OrpoError if there is none."""
    name, weight = name_and_weight(text)
    path = user_path(name)
    label = None
    if path.is_dir():
        label, files = _in_folder(path, selection, lambda message: log(f"{name}: {message}"))
    elif path.is_file():
        files = [path]
    elif path.exists():
        raise OrpoError(
            f"{name}: is not a file; data is read more than once, so write it to a file."
        )
    elif has_magic(name):
        files = _matching(name)
    elif is_hub_source(name):
        label, files = _on_hub(name, selection, lambda message: log(f"{name}: {message}"))
    else:
        raise OrpoError(f"{name}: {_no_such(path)}")
    return Source(name, tuple(files), tuple(label or str(file) for file in files), weight)


def unused_weights(sources: Sequence[Source]) -> list[str]:
    """Sentences about weights where every pair is read once."""
    return [
        f"{source.name}:{source.weight:g}: weights count in training alone; each pair is read once."
        for source in sources
        if source.weight != 1
    ]


def name_and_weight(text: str) -> tuple[str, float]:
    """A name and its weight, 1 if none is named; raises OrpoError unless that is positive."""
    try:
        return name_and_number(text, "weight", positive=True)
    except ValueError as error:
        raise OrpoError(f"{error}.") from None


def bare_name(text: str) -> str:
    """The name without a weight; unchanged where what follows its colon is not one."""
    try:
        return name_and_weight(text)[0]
    except OrpoError:
        return text


def _in_folder(
    folder: Path, selection: _Selection, log: Callable[[str], None]
) -> tuple[str | None, list[Path]]:
    """The files of a split, and the label that they share, if they do."""
    wanted, split = selection.splits, selection.split
    if reading_splits.is_saved(folder):
        chosen, files = reading_splits.pick_saved(folder, wanted, split, log)
        return f"{folder}[{chosen}]", files
    by_split = reading_splits.files_by_split(folder)
    named = split or reading_splits.choose_split(by_split, wanted)
    if len(by_split) > 1 and split is None and named:
        log(f"split {named} is read (found: {', '.join(by_split)})")
    if named not in by_split:
        raise NoSplitError(_missing_split(folder, [split] if split else wanted))
    return None, reading_splits.sort_shards(by_split[named])


def _matching(pattern: str) -> list[Path]:
    # Path.glob takes no absolute pattern
    names = sorted(glob(str(user_path(pattern)), recursive=True))  # noqa: PTH207
    files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise OrpoError(f"{pattern}: no file has such a name (from {Path.cwd()}).")
    return files


def is_hub_source(name: str) -> bool:
    """Whether a name is a data set's on the Hub, not that of a file or a folder here."""
    is_file = reading_splits.data_kind(name) or user_path(name).exists()
    return hub_sets.is_hub_id(name) and not is_file


def _on_hub(name: str, selection: _Selection, log: Callable[[str], None]) -> tuple[str, list[Path]]:
    try:
        chosen, files = hub_sets.load_split(name, **selection._asdict(), log=log)
    except NoSplitError as error:
        raise NoSplitError(f"{name}: {error}") from None
    except OrpoError as error:
        raise OrpoError(
            f"{name}: no such file or folder (from {Path.cwd()}), and as a data set of the Hub: "
            f"{error}"
        ) from None
    return f"{name}[{chosen}]", files


def _repeated_files(source: Source, before: Sequence[Source]) -> list[str]:
    """The files that an earlier source names too: their pairs would count twice."""
    return [
        f"{source.name}: names {label} again (after {other.name}); to use its pairs more often, "
        "give it a weight: SOURCE:2."
        for file, label in zip(source.files, source.labels, strict=True)
        for other in before
        if file.resolve() in [known.resolve() for known in other.files]
    ]


def _empty_files(source: Source) -> list[str]:
    """The labels that have no row."""
    empty = []
    for label in dict.fromkeys(source.labels):
        report = ReadReport()
        files = tuple(f for f, own in zip(source.files, source.labels, strict=True) if own == label)
        part = source._replace(files=files, labels=(label,) * len(files))
        if next(iter_chunks(part, report), None) is None and not report.problems:
            empty.append(label)
    return empty


def _no_such(path: Path) -> str:
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which does not exist."
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    return f"no such file or folder (from {Path.cwd()}).{hint}"


def _missing_split(folder: Path, splits: Sequence[str]) -> str:
    wanted = " or ".join(f"{split}.jsonl" for split in splits)
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    return (
        f"{folder}: the folder has no {wanted}, nor one in another format (found: {names}). "
        "Name a file instead."
    )
