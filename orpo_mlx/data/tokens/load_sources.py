"""The token ids of several sources, or one error for all of their rows that cannot be used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from orpo_mlx.data.pairs.load import (
    RECOGNIZED_ROWS,
    Reading,
    bad_rows_error,
    recognize,
)
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import PREVIEW_HINT, SFT_PREVIEW_HINT, Source, iter_rows
from orpo_mlx.data.tokens.encode import encoding_errors
from orpo_mlx.data.tokens.pipeline import Loader, UnreadableError
from orpo_mlx.data.tokens.store import Store
from orpo_mlx.errors import DiskError, OrpoError

DROP_HINT = "To leave such rows out and count them, use --bad-rows drop."

Progress = Callable[[str, int, int], None]  # a source's name, rows done, rows in all


class BadRowsError(OrpoError):
    """Rows of all sources that cannot be read or rendered."""

    reasoned = False


class RowsOf(NamedTuple):
    """A source, and how its rows are read."""

    source: Source
    reading: Reading


def load_stores(
    loader: Loader,  # its own reading is not used
    sources: Sequence[RowsOf],
    progress: Progress,
    known: Mapping[int, Store] = {},  # by position
) -> list[Store]:
    """The store of each source, if not `known`; raises BadRowsError for the bad rows of all."""
    stores, bad, hints = [], {False: ReadReport(), True: ReadReport()}, []
    for number, (source, reading) in enumerate(sources):
        own = bad[reading.sft]
        faults, problems = len(own.faults), len(own.problems)

        def named(done: int, total: int, name: str = source.name) -> None:
            progress(name, done, total)

        try:
            one = replace(loader, reading=reading)
            stores.append(known[number] if number in known else one.load(source, named))
        except UnreadableError as error:
            own.add(error.report)
        except DiskError:
            raise
        except OrpoError as error:
            own.faults.append(str(error))
        new = ReadReport(faults=own.faults[faults:], problems=own.problems[problems:])
        hints += [hint] if (hint := _sft_hint(source, reading, new)) else []
    if any(report.faults or report.bad for report in bad.values()):
        raise _refusal(bad, hints, loader, some_left=bool(stores))
    return stores


def _refusal(
    bad: Mapping[bool, ReadReport],  # of pairs, and of SFT rows
    hints: Sequence[str],
    loader: Loader,
    *,
    some_left: bool,
) -> BadRowsError:
    """One error for all that is wrong with the sources."""
    lines = [fault for report in bad.values() for fault in report.faults]
    for is_sft, report in bad.items():
        hint = SFT_PREVIEW_HINT if is_sft else PREVIEW_HINT
        lines += [str(bad_rows_error(report.problems, hint))] if report.problems else []
        lines += encoding_errors(report, loader.encoder)
    lines += hints
    if any(report.bad for report in bad.values()):
        some_left = some_left or any(
            report.pairs > len(report.refused) + len(report.unwritten) for report in bad.values()
        )
        lines.append(DROP_HINT if some_left else "No pair of the data is left.")
    refusal = BadRowsError("\n".join(lines))
    refusal.reasoned = any(report.reasoned for report in bad.values())
    return refusal


def _sft_hint(source: Source, reading: Reading, bad: ReadReport) -> str:
    """What to do with rows of a source of pairs that lack the rejected answer; "" for others."""
    if reading.sft or not (bad.faults or bad.problems):
        return ""
    rejected = reading.columns.get("rejected", "rejected")
    try:
        rows = list(islice(iter_rows(source, ReadReport()), RECOGNIZED_ROWS))
        recognize(rows, replace(reading, sft=True), source.name)
    except OrpoError:
        return ""
    if bad.faults and rows and all(row.values.get(rejected) is None for row in rows):
        return (
            f"{source.name}: no row has a rejected answer. Rows of a prompt and one answer are "
            f"trained on with --sft-data {source.name}."
        )
    lacking = (f'"{rejected}" is missing', f'"{rejected}" is null')
    if any(part in problem.fault for problem in bad.problems for part in lacking):
        return (
            f"{source.name}: rows without a rejected answer belong into a file of their own, for "
            "--sft-data."
        )
    return ""
