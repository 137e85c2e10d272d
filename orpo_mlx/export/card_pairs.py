"""What a card says of the pairs of a run: sources, what checking them finds, held-out ones."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.data.folders import data_kind
from orpo_mlx.data.formats import PreferencePair, iter_pairs
from orpo_mlx.data.hub import is_hub_id
from orpo_mlx.data.quality.check import check_pairs
from orpo_mlx.data.shapes import Reading
from orpo_mlx.data.sources import find_sources, name_and_weight
from orpo_mlx.data.split import prompt_hash, split_by_prompt
from orpo_mlx.errors import OrpoError

CHECKED_PAIRS = 1_000
MAX_PAIRS = 50_000  # read to find those that a run held out
_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:\"']+/)+")


class SourceFacts(NamedTuple):
    """A source of pairs as a card names it."""

    name: str
    on_hub: bool


class Checked(NamedTuple):
    """What `data check` finds in the first pairs of a run."""

    pairs: int
    findings: list[tuple[str, str, str]]  # severity, what, how many rows
    skipped: str = ""  # why nothing was checked


def sources_of(config: dict[str, Any]) -> list[SourceFacts]:
    """The sources that a run names, training pairs first."""
    named = [*_texts(config.get("data")), *_texts(config.get("valid_data"))]
    return [_source(name) for name in dict.fromkeys(map(_bare, named))]


def _source(name: str) -> SourceFacts:
    on_hub = is_hub_id(name) and not data_kind(name) and not Path(name).exists()
    return SourceFacts(name if on_hub else name.rstrip("/").split("/")[-1], on_hub)


def check_sources(config: dict[str, Any]) -> Checked:
    """Check the first pairs of a run's own files; says why if that cannot be done."""
    local = [s for s in map(_bare, _texts(config.get("data"))) if Path(s).expanduser().exists()]
    if not local:
        return Checked(0, [], "The pairs are not on the machine that made this card.")
    try:
        return checked_pairs(_read(local, config, CHECKED_PAIRS))
    except OrpoError as error:  # what was trained on can no longer be read
        return Checked(0, [], f"Not checked: {_anonymous(str(error).splitlines()[0])}")


def checked_pairs(pairs: Sequence[PreferencePair]) -> Checked:
    """What checking the first of these pairs finds, or why they are not checked."""
    pairs = pairs[:CHECKED_PAIRS]
    try:
        report = check_pairs({"train": pairs})
    except OrpoError as error:  # the extra is not installed
        return Checked(0, [], f"Not checked: {error}")
    findings = [
        (f.severity, _anonymous(f.what), f"{len(f.rows):,} of {f.total:,}" if f.rows else "")
        for f in report.findings
    ]
    return Checked(len(pairs), findings)


def held_out_pairs(config: dict[str, Any], data: Sequence[str], count: int) -> list[PreferencePair]:
    """The first pairs with prompts that a run did not train on; empty if none can be had."""
    given = [*data] or [s for s in _texts(config.get("valid_data")) if Path(s).exists()]
    try:
        if given:
            return _distinct(_read(given, config, 10 * count, ("test", "valid")))[:count]
        local = [s for s in map(_bare, _texts(config.get("data"))) if Path(s).exists()]
        pairs = _read(local, config, MAX_PAIRS + 1) if local else []
    except OrpoError:
        if data:
            raise
        return []
    if not pairs or len(pairs) > MAX_PAIRS:
        return []
    hashes = np.array([prompt_hash(pair) for pair in pairs], np.uint64)
    mask = split_by_prompt(hashes, config.get("valid_fraction") or 0, config.get("seed") or 0)
    return _distinct([pairs[i] for i in np.flatnonzero(mask)])[:count]


def _read(
    sources: Sequence[str], config: dict[str, Any], limit: int, splits: Sequence[str] = ("train",)
) -> list[PreferencePair]:
    """The first pairs of sources; rows that cannot be read are passed over."""
    reading = Reading(config.get("format") or "auto", config.get("columns") or {})
    pairs: list[PreferencePair] = []
    for source in find_sources(list(sources), splits=splits, split=config.get("split")):
        for pair in iter_pairs(source, reading, [], Counter()):
            pairs.append(pair)
            if len(pairs) >= limit:
                return pairs
    return pairs


def _distinct(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The first pair of every prompt."""
    return list({prompt_hash(pair): pair for pair in reversed(pairs)}.values())[::-1]


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value or []]


def _bare(source: str) -> str:
    try:
        return name_and_weight(source)[0]
    except OrpoError:
        return source


def _anonymous(text: str) -> str:
    """A text without the folders of this machine."""
    return _PATH.sub("", text)
