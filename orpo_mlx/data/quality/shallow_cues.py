"""Shallow cues: how well length, lists, apologies and the like tell chosen from rejected."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orpo_mlx.data.quality.answers import count_apologies, refuses
from orpo_mlx.data.quality.findings import WARNING, Finding, Hit, example_of
from orpo_mlx.data.quality.texts import Texts
from orpo_mlx.data.quality.thresholds import Thresholds, describe_threshold

LEAST_PAIRS = 20
CERTAIN = 3.0  # standard errors that an accuracy must be from chance
_LIST = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} \S", re.MULTILINE)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u231a\u231b]")


class Cue(NamedTuple):
    """How far a rule gets that knows one thing about two answers."""

    name: str
    accuracy: float  # of "more of it is chosen", ties counted half
    differing: int  # pairs in which one answer has more of it than the other
    chosen: float  # mean of it
    rejected: float
    effect: float  # mean difference in standard deviations of the differences

    @property
    def strength(self) -> float:
        """The accuracy of the better of both rules, more and less."""
        return max(self.accuracy, 1 - self.accuracy)


def _count(pattern: re.Pattern[str]) -> Callable[[str], int]:
    return lambda text: len(pattern.findall(text))


COUNTS: dict[str, Callable[[str], int]] = {
    "length in characters": len,
    "list items": _count(_LIST),
    "headings": _count(_HEADING),
    "bold type": lambda text: text.count("**") // 2,
    "emoji": lambda text: 0 if text.isascii() else len(_EMOJI.findall(text)),
    "exclamation marks": lambda text: text.count("!") + text.count("！"),
    "question marks": lambda text: text.count("?") + text.count("？"),
    "first-person apologies": count_apologies,
    "code": lambda text: text.count("`") // 2,
    "refusals": lambda text: int(refuses(text)),
}
LENGTH = "length in characters"


def measure_cues(rows: Sequence[Texts]) -> list[Cue]:
    """Every cue over all pairs."""
    return [
        _cue(name, [(count(row.chosen), count(row.rejected)) for row in rows])
        for name, count in COUNTS.items()
    ]


def _cue(name: str, counts: Sequence[tuple[int, int]]) -> Cue:
    differences = [chosen - rejected for chosen, rejected in counts]
    n = max(len(differences), 1)
    more, less = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / n)
    return Cue(
        name,
        0.5 + (more - less) / (2 * n),
        more + less,
        sum(chosen for chosen, _ in counts) / n,
        sum(rejected for _, rejected in counts) / n,
        mean / spread if spread else 0.0,
    )


def find_cues(rows: Sequence[Texts], cues: Sequence[Cue], thresholds: Thresholds) -> list[Finding]:
    """The cues that alone tell the pairs apart."""
    return [
        _cue_finding(rows, cue, thresholds)
        for cue in cues
        if cue.strength >= thresholds[_threshold(cue)] and is_certain(cue.strength, len(rows))
    ]


def is_certain(accuracy: float, pairs: int) -> bool:
    """Whether an accuracy is so far above one half that chance does not explain it."""
    return pairs >= LEAST_PAIRS and (accuracy - 0.5) * 2 * math.sqrt(pairs) >= CERTAIN


def _threshold(cue: Cue) -> str:
    return "longer" if cue.name == LENGTH else "cue"


def _cue_finding(rows: Sequence[Texts], cue: Cue, thresholds: Thresholds) -> Finding:
    more = cue.accuracy > 0.5
    rule = f"more {cue.name}" if more else f"fewer {cue.name}"
    if cue.name == LENGTH:
        rule = "the longer answer" if more else "the shorter answer"
    count = COUNTS[cue.name]
    signs = ((row, count(row.chosen) - count(row.rejected)) for row in rows)
    shown = [row for row, sign in signs if (sign > 0 if more else sign < 0)][:2]
    return Finding(
        name="length" if cue.name == LENGTH else cue.name.replace(" ", "_"),
        severity=WARNING,
        rows=(),
        total=len(rows),
        what=f"{rule} means chosen in {cue.strength:.0%} of the pairs (chosen {cue.chosen:.1f}, "
        f"rejected {cue.rejected:.1f} on average, effect size {cue.effect:+.2f})",
        advice="The model can learn this instead of quality. Balance it: drop pairs that follow "
        "the rule, or add some that go against it.",
        threshold=describe_threshold(_threshold(cue), thresholds),
        examples=tuple(
            example_of(Hit(row, f"{cue.name}: {count(row.chosen)} / {count(row.rejected)}"))
            for row in shown
        ),
        figures={
            "accuracy": cue.accuracy,
            "differing": cue.differing,
            "effect": cue.effect,
            "chosen": cue.chosen,
            "rejected": cue.rejected,
        },
    )
