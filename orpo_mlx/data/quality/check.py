"""All checks over the pairs of all splits, in one report."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.quality.broken import find_broken, find_unreadable
from orpo_mlx.data.quality.by_model import BaseLogps, RenderedFacts, find_margins, find_rendered
from orpo_mlx.data.quality.clarity import edit_similarity, find_unclear
from orpo_mlx.data.quality.classifier import ClassifierResult, classify, find_words
from orpo_mlx.data.quality.diversity import Diversity, find_sameness, measure_diversity
from orpo_mlx.data.quality.duplicates import find_contradictions, find_duplicates
from orpo_mlx.data.quality.findings import SEVERE, Finding, merge_by_name, worst_first
from orpo_mlx.data.quality.shallow_cues import Cue, find_cues, measure_cues
from orpo_mlx.data.quality.texts import texts_of
from orpo_mlx.data.quality.thresholds import Thresholds, build_thresholds
from orpo_mlx.data.reading.report import Problem

STAGES = 7
Log = Callable[[str, int, int], None]  # stage, done, total


class Seen(NamedTuple):
    """What a base's template, limits and weights make of all pairs, split by split in order."""

    rendered: Sequence[RenderedFacts]
    logps: Sequence[BaseLogps | None]  # None: not judged
    max_seq_length: int


class Report(NamedTuple):
    """The findings, worst first, and the figures that plots and tables show."""

    pairs: dict[str, int]  # by split
    findings: list[Finding]
    cues: list[Cue]
    words: ClassifierResult | None
    diversity: Diversity
    similarities: list[float]  # of chosen and rejected, by pair
    lengths: list[tuple[int, int]]  # characters of chosen and rejected, by pair
    margins: list[float]  # of the pairs that a base has judged
    thresholds: Thresholds

    @property
    def severe(self) -> list[Finding]:
        """The findings that --strict does not let pass."""
        return [finding for finding in self.findings if finding.severity == SEVERE]


def check_pairs(
    splits: Mapping[str, Sequence[PreferencePair]],
    thresholds: Thresholds | None = None,
    *,
    problems: Sequence[Problem] = (),
    seen: Seen | None = None,
    seed: int = 0,
    log: Log = lambda stage, done, total: None,
) -> Report:
    """Check the pairs of all splits together; `problems` are rows that could not be read.

    Deterministic for the same pairs, thresholds and seed.
    """
    limits = thresholds or build_thresholds()
    rows = texts_of(splits)
    total = len(rows)
    log("Checking pairs", 1, STAGES)
    findings = [*find_unreadable(problems, total), *find_broken(rows, limits)]
    log("Checking pairs", 2, STAGES)
    findings += find_contradictions(rows)
    findings += find_duplicates(rows, limits, lambda done: log("Comparing rows", done, total))
    log("Checking pairs", 3, STAGES)
    similarities = [edit_similarity(row) for row in rows]
    findings += find_unclear(rows, similarities, limits)
    log("Checking pairs", 4, STAGES)
    cues = measure_cues(rows)
    findings += find_cues(rows, cues, limits)
    log("Checking pairs", 5, STAGES)
    words = classify(rows, limits, seed)
    findings += find_words(words, limits)
    log("Checking pairs", 6, STAGES)
    diversity = measure_diversity(rows, limits, seed)
    findings += find_sameness(rows, diversity, limits)
    if seen:
        findings += find_rendered(rows, seen.rendered, seen.max_seq_length)
        findings += find_margins(rows, seen.logps, limits)
    log("Checking pairs", 7, STAGES)
    lengths = [(len(row.chosen), len(row.rejected)) for row in rows]
    return Report(
        {split: len(pairs) for split, pairs in splits.items()},
        worst_first(merge_by_name(findings)),
        cues,
        words,
        diversity,
        similarities,
        lengths,
        [base.margin for base in seen.logps if base] if seen else [],
        limits,
    )
