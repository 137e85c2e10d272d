"""Counts and lengths of pairs, added up one pair after another."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.formats import Message, PreferencePair
from orpo_mlx.data.split import prompt_hash
from orpo_mlx.data.template import split_reasoning

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
        return {name: summary(n) for name, n in (parts | {"together": self.totals()}).items()}


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


def summary(lengths: np.ndarray) -> Lengths:
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
    found = {
        "system message": "system" in roles,
        "several turns": roles.count("user") > 1,
        "tools": bool(pair.tools),
        "tool calls": any("tool_calls" in m for m in (*pair.messages, *answers)),
        "reasoning in a response": any(split_reasoning(answer)[0] for answer in answers),
        "prompt that ends with the assistant": roles[-1] == "assistant",
        "template's markers": pair.raw,
    }
    return [name for name, holds in found.items() if holds]
