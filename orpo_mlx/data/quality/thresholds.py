"""What it takes to be a finding: every threshold with its default and its meaning."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from orpo_mlx.errors import OrpoError, collected

Thresholds = Mapping[str, float]


class Threshold(NamedTuple):
    """A number that can be set with --threshold NAME=VALUE."""

    name: str
    default: float
    meaning: str
    least: float = 0.0
    most: float = 1.0


DECLARED = (
    Threshold("echo", 20, "letters of a question at which an answer that repeats all of it is "
              "reported (a character of a script without spaces counts as 3)", 1, 1e6),
    Threshold("near_duplicate", 0.8, "Jaccard similarity of two rows' runs of three words (five "
              "characters in scripts without spaces) at which they are near-duplicates", 0.3),
    Threshold("boilerplate", 0.05, "share of prompts above which a run of words in them counts as "
              "part of a template and is not compared"),
    Threshold("alike", 0.95, "edit similarity of chosen and rejected at which a pair shows little "
              "difference"),
    Threshold("few_prompts", 0.5, "share of distinct prompts below which there are few"),
    Threshold("opening", 0.1, "share of chosen answers that begin with the same three words at "
              "which it is reported"),
    Threshold("vocabulary", 0.1, "distinct words as a share of the words in a sample of chosen "
              "answers (10,000 words) below which the vocabulary is small"),
    Threshold("similar_prompts", 0.5, "Jaccard similarity at which two prompts are in one cluster",
              0.3),
    Threshold("cluster", 0.1, "share of all prompts at which a cluster of similar ones is "
              "reported"),
    Threshold("language", 0.01, "share of the texts at which a second language is reported"),
    Threshold("longer", 0.65, "share of pairs whose longer answer is chosen (or whose shorter one "
              "is) at which length alone tells the pairs apart", 0.5),
    Threshold("cue", 0.65, "accuracy of the rule that the answer with more (or less) of something "
              "is chosen, ties counted half, at which it tells the pairs apart", 0.5),
    Threshold("classifier", 0.75, "accuracy of a bag-of-words classifier on held-out prompts at "
              "which words alone tell the pairs apart", 0.5),
    Threshold("classifier_pairs", 10_000, "pairs to fit the classifier on, drawn at random where "
              "there are more", 50, 1e9),
    Threshold("easy", 1.0, "mean log-prob per token by which the base must prefer the chosen "
              "answer for a pair to have little to teach", 0, 1e3),
    Threshold("noise", 1.0, "mean log-prob per token by which the base must prefer the rejected "
              "answer for a pair to be possibly mislabeled", 0, 1e3),
)  # fmt: skip
_BY_NAME = {threshold.name: threshold for threshold in DECLARED}


def build_thresholds(given: Mapping[str, Any] | None = None) -> Thresholds:
    """The defaults with what is given; raises one OrpoError for all that cannot be set."""
    given = given or {}
    problems = [fault for name, value in given.items() if (fault := _fault(name, value))]
    if problems:
        raise (
            OrpoError(problems[0])
            if len(problems) == 1
            else collected("Wrong thresholds:", problems)
        )
    return {t.name: float(given.get(t.name, t.default)) for t in DECLARED}


def describe_threshold(name: str, thresholds: Thresholds) -> str:
    """A threshold with its value and its meaning, for a finding."""
    return f"{name}={thresholds[name]:g}: {_BY_NAME[name].meaning}"


def _fault(name: str, value: Any) -> str:
    threshold = _BY_NAME.get(name)
    if threshold is None:
        close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.6)
        meant = f" Did you mean {close[0]}?" if close else ""
        return f"--threshold {name}: no such threshold.{meant} There are: {', '.join(_BY_NAME)}."
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"--threshold {name}={value}: must be a number."
    if not threshold.least <= value <= threshold.most:
        return (
            f"--threshold {name}={value:g}: must be between {threshold.least:g} and "
            f"{threshold.most:g} ({threshold.meaning})."
        )
    return ""
