"""Pairs for the tests of single checks."""

from collections.abc import Sequence
from typing import Any

from orpo_mlx.data.pairs.messages import Message, PreferencePair
from orpo_mlx.data.quality.findings import Finding
from orpo_mlx.data.quality.texts import Texts, texts_of

LONG = (
    "The kettle in the office has to be descaled every few weeks, because the water there is hard."
)


def pair(
    prompt: str | list[Message] = LONG,
    chosen: str = "Use vinegar and wait.",
    rejected: str = "Buy a new one.",
    location: str = "a.jsonl:1",
    **more: Any,
) -> PreferencePair:
    answers = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return PreferencePair(prompt, *answers, location, **more)


def rows(*pairs: PreferencePair, **splits: Sequence[PreferencePair]) -> list[Texts]:
    """The texts of pairs, each at a line of its own; those of `splits` in their splits."""
    numbered = [p._replace(location=f"a.jsonl:{i}") for i, p in enumerate(pairs, start=1)]
    named = {
        name: [p._replace(location=f"{name}.jsonl:{i}") for i, p in enumerate(own, start=1)]
        for name, own in splits.items()
    }
    return texts_of({"all": numbered, **named} if pairs else named)


def named(findings: Sequence[Finding], name: str) -> list[str]:
    """The rows that a finding names; none if it is not there."""
    return [location for finding in findings if finding.name == name for location in finding.rows]
