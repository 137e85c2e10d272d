"""Counts and lengths of pairs, added up one pair after another."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.config.data import DataStatsConfig
from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.pairs.split import prompt_hash
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Source
from orpo_mlx.data.tokens.encode import BLOCK
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.data.tokens.pipeline import first_pairs
from orpo_mlx.data.tokens.rendering.reasoning import split_reasoning
from orpo_mlx.data.tokens.rendering.refused import RefusedError
from orpo_mlx.data.tokens.rendering.template import Rendered
from orpo_mlx.events import Callback, log_once
from orpo_mlx.loading import build_encoder, open_tokenizer, template_of, thinking_for
from orpo_mlx.read_options import reading_of
from orpo_mlx.review.pairs.read_sources import find_by_split, finish_reading, iter_sources

PARTS = ("prompt", "chosen", "rejected")


class Lengths(NamedTuple):
    """How long texts are, in characters or tokens."""

    mean: float
    median: float
    p95: float
    max: int


class Bin(NamedTuple):
    """How many pairs have a length of at least `start` and under `end`."""

    start: int
    end: int
    pairs: int


@dataclass
class Lists:
    """The lengths of each part, pair by pair."""

    prompt: "array[int]" = field(default_factory=lambda: array("I"))
    chosen: "array[int]" = field(default_factory=lambda: array("I"))
    rejected: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, prompt: int, chosen: int, rejected: int) -> None:
        """Those of another pair."""
        self.prompt.append(prompt)
        self.chosen.append(chosen)
        self.rejected.append(rejected)

    def totals(self) -> np.ndarray:
        """Prompt and longer response of every pair."""
        prompt, chosen, rejected = (np.asarray(getattr(self, name)) for name in PARTS)
        return prompt + np.maximum(chosen, rejected)

    def summaries(self) -> dict[str, Lengths]:
        """Of each part, and of prompt and longer response together."""
        parts = {name: np.asarray(getattr(self, name)) for name in PARTS}
        return {
            name: length_summary(n) for name, n in (parts | {"together": self.totals()}).items()
        }


@dataclass
class Stats:
    """What is counted of the pairs of a split."""

    pairs: int = 0
    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    turns: Counter[int] = field(default_factory=Counter)  # messages of the user in a prompt
    features: Counter[str] = field(default_factory=Counter)  # pairs that hold something
    characters: Lists = field(default_factory=Lists)
    tokens: Lists = field(default_factory=Lists)

    def add(self, pair: PreferencePair) -> None:
        """Count another pair."""
        self.pairs += 1
        self.hashes.append(prompt_hash(pair))
        self.turns[sum(message["role"] == "user" for message in pair.messages)] += 1
        self.features.update(_features(pair))
        self.characters.add(
            sum(map(_characters, pair.messages)), *map(_characters, (pair.chosen, pair.rejected))
        )

    def as_dict(self, max_seq_length: int) -> dict[str, Any]:
        """For JSON; tokens only where they were counted."""
        facts: dict[str, Any] = {
            "pairs": self.pairs,
            "prompts": len(np.unique(np.asarray(self.hashes))),
            "turns": {str(turns): count for turns, count in sorted(self.turns.items())},
            "features": dict(self.features.most_common()),
            "characters": _plain(self.characters),
        }
        if self.tokens.prompt:
            over = int((self.tokens.totals() > max_seq_length).sum())
            facts |= {"tokens": _plain(self.tokens), "over_max_seq_length": over}
        return facts


def length_summary(lengths: np.ndarray) -> Lengths:
    """Mean, median, 95th percentile and maximum."""
    if not len(lengths):
        return Lengths(0.0, 0.0, 0.0, 0)
    median, p95 = np.percentile(lengths, [50, 95])
    return Lengths(float(lengths.mean()), float(median), float(p95), int(lengths.max()))


def histogram(lengths: np.ndarray) -> list[Bin]:
    """About eight bins of one round width; the last takes the longest hundredth with it."""
    if not len(lengths):
        return []
    low, high = (float(n) for n in np.percentile(lengths, [0, 99], method="lower"))
    step = _round_step((high - low) / 8)
    start = int(low // step) * step
    edges = [*range(start, int(high) + 1, step), max(int(lengths.max()) + 1, start + step)]
    counts, _ = np.histogram(lengths, bins=edges)
    return [Bin(*b) for b in zip(edges, edges[1:], counts.tolist(), strict=False)]


def _round_step(width: float) -> int:
    """The first of 1, 2, 5, 10, 20, ... that is not under a width."""
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    return next(step for step in steps if step >= width)


def _plain(lists: Lists) -> dict[str, Any]:
    return {name: lengths._asdict() for name, lengths in lists.summaries().items()}


def _characters(message: Message) -> int:
    return len(message["content"])


def _features(pair: PreferencePair) -> Sequence[str]:
    """What a pair holds besides a question and two answers."""
    roles = [message["role"] for message in pair.messages]
    answers = (pair.chosen, pair.rejected)
    features = {
        "system message": "system" in roles,
        "several turns": roles.count("user") > 1,
        "tools": bool(pair.tools),
        "tool calls": any("tool_calls" in m for m in (*pair.messages, *answers)),
        "reasoning in a response": any(split_reasoning(answer)[0] for answer in answers),
        "prompt that ends with the assistant": roles[-1] == "assistant",
        "template's markers": pair.raw,
    }
    return [name for name, holds in features.items() if holds]


class DataStats(NamedTuple):
    """What was counted, and what gave no pair or no tokens, by reason."""

    splits: dict[str, Stats]
    left_out: Counter[str]
    max_seq_length: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "splits": {n: stats.as_dict(self.max_seq_length) for n, stats in self.splits.items()},
            "left_out": dict(self.left_out.most_common()),
        }


def data_stats(config: DataStatsConfig, report: Callback = lambda event: None) -> DataStats:
    """Count all pairs of the settings' sources; with a model, their tokens too.

    Raises OrpoError for rows that cannot be read.
    """
    log = log_once(report)
    read_report = ReadReport()
    sources = find_by_split(config, log)
    encoder = _encoder(config, [source for own in sources.values() for source in own], report)
    splits = {}
    for split, own in sources.items():
        splits[split] = Stats()
        pairs = iter_sources(config, own, read_report, report, log)
        while block := list(islice(pairs, BLOCK)):
            _count(block, encoder, splits[split], read_report)
    finish_reading(read_report, config)
    return DataStats(splits, read_report.rows_left_out, config.max_seq_length)


def _encoder(
    config: DataStatsConfig, sources: Iterable[Source], report: Callback
) -> Encoder | None:
    """The encoder of the model, if one is named."""
    if config.model is None:
        return None
    base, template = open_tokenizer(config, config.model), template_of(config)
    first = [pair for source in sources for pair in first_pairs(source, reading_of(config))]
    return build_encoder(base, template, thinking_for(template, first, report))


def _count(
    pairs: Sequence[PreferencePair], encoder: Encoder | None, stats: Stats, read_report: ReadReport
) -> None:
    for pair in pairs:
        stats.add(pair)
    if encoder is None:
        return
    accepted: list[PreferencePair] = []
    texts: list[Rendered] = []
    for pair in pairs:
        try:
            texts.append(encoder.render_pair(pair, Counter()))
            accepted.append(pair)
        except RefusedError as error:
            read_report.leave_out(f"no tokens: {error}")
    for prompt, chosen, rejected in encoder.encode_all(accepted, texts, Counter()):
        stats.tokens.add(len(prompt), len(chosen), len(rejected))
