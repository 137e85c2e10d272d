"""From settings to a report: read all splits, check the pairs, and let a base judge some."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.data.pairs.load import iter_pairs, log_notes
from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO, describe_unpaired
from orpo_mlx.data.quality.check import Report, check_pairs
from orpo_mlx.data.quality.findings import NOTE, WARNING, Finding, worst_first
from orpo_mlx.data.quality.thresholds import build_thresholds
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Source
from orpo_mlx.data.reading.splits import SPLITS, usual_name
from orpo_mlx.events import Callback, Progress, log_once
from orpo_mlx.read_options import reading_of
from orpo_mlx.review.pairs.read_sources import ALL, REPORT_EVERY, find_by_split, no_pair_error

JSON_KEYS = {"location": "place"}  # a field -> its key in the report, which stays


class ReadSplits(NamedTuple):
    """The pairs of all splits, and what did not become a pair."""

    pairs: dict[str, list[PreferencePair]]
    report: ReadReport


def check_data(config: DataCheckConfig, report: Callback = lambda event: None) -> Report:
    """Read and check what the settings name; with a model, what it sees and thinks of it too.

    A row that cannot be read is a finding. Raises OrpoError if no pair is there at all, or for
    a threshold, a source or a model that cannot be used.
    """
    thresholds = build_thresholds(config.threshold)
    read = read_splits(config, report)
    seen = None
    if config.model is not None:
        from orpo_mlx.review.pairs.base_view import seen_by_base

        seen = seen_by_base(config, read.pairs, report)
    result = check_pairs(
        read.pairs,
        thresholds,
        problems=read.report.problems,
        seen=seen,
        seed=config.seed,
        log=lambda stage, done, total: report(Progress(stage, done, total)),
    )
    return result._replace(findings=worst_first([*result.findings, *_left_out(read)]))


def read_splits(config: DataCheckConfig, report: Callback) -> ReadSplits:
    """The pairs of every source, split by split."""
    reading = reading_of(config)
    read = ReadSplits({}, ReadReport())
    log = log_once(report)  # the splits of a folder mostly have one format
    for split, source in _sources_by_split(config, log):
        pairs = read.pairs.setdefault(split, [])
        for pair in iter_pairs(source, reading, read.report, log):
            pairs.append(pair)
            if len(pairs) % REPORT_EVERY == 0:
                report(Progress(f"Reading {split} pairs", len(pairs), len(pairs) + 1))
    log_notes(read.report, log)
    if not any(read.pairs.values()) and not read.report.problems:
        raise no_pair_error(config.data, read.report)
    return read


def _sources_by_split(
    config: DataCheckConfig, log: Callable[[str], None]
) -> list[tuple[str, Source]]:
    """The sources by split, a single file by its name."""
    sources = [
        (split_named(source) if split == ALL else split, source)
        for split, of_split in find_by_split(config, log).items()
        for source in of_split
    ]
    return sorted(sources, key=lambda pair: _rank_of_split(pair[0]))


def split_named(source: Source) -> str:
    """The split that a file is named after (`test.jsonl`, `dev-00000-of-00002.parquet`)."""
    word = source.files[0].name.replace("_", ".").replace("-", ".").split(".")[0].lower()
    split = usual_name(word)
    return split if split in SPLITS else ALL


def _rank_of_split(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else -1


def _left_out(read: ReadSplits) -> list[Finding]:
    """A note about rows that gave no pair, by reason; a warning if that is most of the answers."""
    if not read.report.rows_left_out:
        return []
    pairs = sum(map(len, read.pairs.values()))
    total = pairs + read.report.rows_left_out.total()
    unpaired = describe_unpaired(read.report, pairs)
    return [
        *([Finding("unpaired", WARNING, (), total, unpaired, WHAT_TO_DO)] if unpaired else []),
        Finding(
            name="left_out",
            severity=NOTE,
            rows=(),
            total=total,
            what=f"rows that give no pair are left out: {read.report.reasons()}",
            advice="See orpo-mlx data stats for how many pairs each source gives.",
        ),
    ]


def report_json(report: Report) -> dict[str, Any]:
    """A report as JSON: every row that a finding names, and the figures of the plots."""
    return {
        "pairs": report.pairs,
        "severe": len(report.severe),
        "findings": _plain(report.findings),
        "cues": [_plain(cue) for cue in report.cues],
        "words": _plain(report.words) if report.words else None,
        "diversity": _plain(report.diversity._replace(cluster_rows=())),
        "margins": report.margins,
        "thresholds": dict(report.thresholds),
    }


def _plain(value: Any) -> Any:
    """Named tuples as objects, whatever they hold."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {JSON_KEYS.get(name, name): _plain(v) for name, v in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value
