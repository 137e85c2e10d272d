"""The pairs that a data command names: found, read one after another, all that is wrong told."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orpo_mlx.config import ReadOptions, SourceOptions
from orpo_mlx.data.formats import (
    PreferencePair,
    Reading,
    bad_rows_error,
    count_problems,
    iter_pairs,
)
from orpo_mlx.data.sources import Problem, Source, find_sources
from orpo_mlx.errors import OrpoError
from orpo_mlx.training.metrics import Callback, Progress

TOLD_EVERY = 1_000
SPLITS = ("train", "valid", "test")


def reading_of(options: ReadOptions) -> Reading:
    """How rows are read."""
    return Reading(options.format, options.columns, options.better, options.min_margin)


def find_named(
    options: SourceOptions, tell: Callable[[str], None], splits: Sequence[str] = SPLITS[:1]
) -> list[Source]:
    """The sources of a data command; raises OrpoError for those that name nothing."""
    found = find_sources(
        options.data, splits=splits, flag="SOURCE", split=options.split, subset=options.subset,
        revision=options.data_revision, tell=tell,
    )  # fmt: skip
    if weighted := [source.name for source in found if source.weight != 1]:
        raise OrpoError(
            f"SOURCE {', '.join(weighted)}: weights are for orpo-mlx train; here each pair counts "
            "once."
        )
    return found


def iter_all(
    options: SourceOptions,
    sources: Sequence[Source],
    drops: Counter[str],
    emit: Callback,
    tell: Callable[[str], None],
) -> Iterator[PreferencePair]:
    """All pairs of the sources; raises one OrpoError for all bad rows when the last is read.

    With --bad-rows drop those are counted in `drops` instead. Raises OrpoError for no pair, too.
    """
    problems: list[Problem] = []
    count = 0
    for source in sources:
        for pair in iter_pairs(source, reading_of(options), problems, drops, tell):
            yield pair
            count += 1
            if count % TOLD_EVERY == 0:
                emit(Progress("Reading pairs", count, 0))
    if problems and options.bad_rows == "stop":
        raise bad_rows_error(problems)
    count_problems(problems, drops)
    if not count:
        raise no_pair_error(sources, drops)


def refuse_existing(files: Sequence[Path], flag: str, overwrite: bool) -> None:
    """Raise OrpoError for a file that stands where one is to be written, unless asked for."""
    if folders := [str(file) for file in files if file.is_dir()]:
        raise OrpoError(f"{flag} {', '.join(folders)}: is a folder; name a file.")
    if there := [str(file) for file in files if file.exists() and not overwrite]:
        verb = "exist" if there[1:] else "exists"
        raise OrpoError(
            f"{flag}: {', '.join(there)} {verb}. Replace with --overwrite, or name another place."
        )


def no_pair_error(sources: Sequence[Source], drops: Counter[str]) -> OrpoError:
    """Rows were read, and none made a pair."""
    reasons = "; ".join(f"{count:,} x {why}" for why, count in drops.most_common())
    names = ", ".join(source.name for source in sources)
    return OrpoError(f"No pair was found in {names}. {reasons}".strip())
