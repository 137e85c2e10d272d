"""The pairs of the sources that a data command names; all problems are reported together."""

from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path

from orpo_mlx.config.groups import SourceOptions
from orpo_mlx.data.pairs.load import PreferencePair, bad_rows_error, iter_pairs, log_notes
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO, describe_unpaired
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import (
    Source,
    bare_name,
    check_parts,
    find_sources,
    name_and_weight,
)
from orpo_mlx.data.reading.splits import SPLITS
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Progress
from orpo_mlx.files import user_path
from orpo_mlx.read_options import reading_of

REPORT_EVERY = 1_000
ALL = "all"  # of a source without splits


def find_named(options: SourceOptions, log: Callable[[str], None]) -> list[Source]:
    """The sources of a data command, of split ones the train part; raises OrpoError for those that
    name nothing."""
    sources = _find(options, options.data, SPLITS[:1], log)
    _check_parts(options)
    return sources


def refuse_weights(sources: Sequence[Source]) -> None:
    """Raise OrpoError for weights of sources, which a file that is written cannot keep."""
    if weighted := [source.name for source in sources if source.weight != 1]:
        raise OrpoError(
            f"SOURCE {', '.join(weighted)}: weights are for orpo-mlx train; here each pair counts "
            "once."
        )


def iter_sources(
    options: SourceOptions,
    sources: Sequence[Source],
    read_report: ReadReport,
    report: Callback,
    log: Callable[[str], None],
) -> Iterator[PreferencePair]:
    """All pairs of the sources, one after another; what is wrong is kept in the report."""
    reading = reading_of(options)
    for source in sources:
        try:
            for pair in iter_pairs(source, reading, read_report, log):
                yield pair
                read_report.pairs += 1
                if read_report.pairs % REPORT_EVERY == 0:
                    report(Progress("Reading pairs", read_report.pairs, 0))
        except OrpoError as error:
            read_report.faults.append(str(error))
    log_notes(read_report, log)


def finish_reading(read_report: ReadReport, options: SourceOptions) -> None:
    """Raise one OrpoError for all that is wrong; with --bad-rows drop, count bad rows."""
    bad_rows = read_report.problems and options.bad_rows == "stop"
    if lines := [
        *read_report.faults,
        *([str(bad_rows_error(read_report.problems))] if bad_rows else []),
    ]:
        raise OrpoError("\n".join(lines))
    read_report.drop_bad()
    if not read_report.pairs:
        raise no_pair_error(options.data, read_report)


def refuse_existing(
    files: Sequence[Path], flag: str, overwrite: bool, sources: Sequence[str]
) -> None:
    """Raise OrpoError for a file that is in the way, unless `overwrite` is set, and always for one
    that belongs to the sources."""
    if own := [str(file) for file in files if file.exists() and _is_of(file, sources)]:
        raise OrpoError(
            f"{flag} {', '.join(own)}: belongs to the source, which is never overwritten. "
            "Name another file or folder."
        )
    if folders := [str(file) for file in files if file.is_dir()]:
        raise OrpoError(f"{flag} {', '.join(folders)}: is a folder; name a file.")
    if there := [str(file) for file in files if file.exists() and not overwrite]:
        verb, them = ("exist", "them") if there[1:] else ("exists", "it")
        raise OrpoError(
            f"{flag} {', '.join(there)} {verb}. Replace {them} with --overwrite, or name another."
        )


def _is_of(file: Path, sources: Sequence[str]) -> bool:
    """Whether a file is a source, or in a folder that is one, or matches a pattern that is one."""
    location = file.resolve()
    for source in sources:
        path = user_path(bare_name(source))
        named = [path] if path.exists() else map(Path, glob(str(path), recursive=True))  # noqa: PTH207
        for match in named:
            if match.resolve() in (location, *(location.parents if match.is_dir() else ())):
                return True
    return False


def no_pair_error(names: Sequence[str], read_report: ReadReport) -> OrpoError:
    """Rows were read, and none made a pair."""
    lines = [f"No pair was found in {', '.join(names)}. {read_report.reasons()}".strip()]
    lines += [WHAT_TO_DO] if describe_unpaired(read_report, 0) else []
    return OrpoError("\n".join(lines))


def find_by_split(options: SourceOptions, log: Callable[[str], None]) -> dict[str, list[Source]]:
    """All splits of folders and of data sets, other sources as `all`; no file twice.

    Raises OrpoError for all sources that name nothing.
    """
    by_split: dict[str, list[Source]] = {}
    seen, problems = set[Path](), []
    for name in options.data:
        try:
            parts = _splits_of(options, name, log)
        except OrpoError as error:
            problems.append(str(error))
            continue
        for split, source in parts:
            if not seen.issuperset(source.files):
                seen.update(source.files)
                by_split.setdefault(split, []).append(source)
    if problems:
        raise OrpoError("\n".join(problems))
    _check_parts(options)
    return {split: by_split[split] for split in (*SPLITS, ALL) if split in by_split}


def _splits_of(
    options: SourceOptions, name: str, log: Callable[[str], None]
) -> list[tuple[str, Source]]:
    path = user_path(name_and_weight(name)[0])
    if options.split or path.is_file() or set(name) & set("*?["):
        return [(ALL, source) for source in _find(options, [name], SPLITS[:1], log)]
    result, faults = [], []
    for split in SPLITS:
        try:
            sources = _find(options, [name], (split,), lambda _: None)
            result += [(split, source) for source in sources]
        except OrpoError as error:
            faults.append(error)
    if not result:
        raise faults[0]
    return result


def _find(
    options: SourceOptions, names: Sequence[str], splits: Sequence[str], log: Callable[[str], None]
) -> list[Source]:
    return find_sources(
        names,
        splits=splits,
        flag="SOURCE",
        split=options.split,
        subset=options.subset,
        revision=options.data_revision,
        log=log,
    )


def _check_parts(options: SourceOptions) -> None:
    check_parts(
        options.data, split=options.split, subset=options.subset, revision=options.data_revision
    )
