"""The pairs that a run did not train on, read again from its sources."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orpo_mlx.data.pairs.load import PreferencePair, iter_pairs
from orpo_mlx.data.pairs.row_format import Reading
from orpo_mlx.data.pairs.split import prompt_hash, split_by_prompt
from orpo_mlx.data.reading.sources import find_sources, name_and_weight
from orpo_mlx.errors import OrpoError

MAX_PAIRS = 50_000  # read to find those that a run held out


def held_out_pairs(config: dict[str, Any], data: Sequence[str], count: int) -> list[PreferencePair]:
    """The first pairs with prompts that a run did not train on; empty if none can be had."""
    given = [*data] or [s for s in texts_of(config.get("valid_data")) if Path(s).exists()]
    try:
        if given:
            return _distinct(read_first_pairs(given, config, 10 * count, ("test", "valid")))[:count]
        local = [s for s in map(bare_name, texts_of(config.get("data"))) if Path(s).exists()]
        pairs = read_first_pairs(local, config, MAX_PAIRS + 1) if local else []
    except OrpoError:
        if data:
            raise
        return []
    if not pairs or len(pairs) > MAX_PAIRS:
        return []
    hashes = np.array([prompt_hash(pair) for pair in pairs], np.uint64)
    mask = split_by_prompt(hashes, config.get("valid_fraction") or 0, config.get("seed") or 0)
    return _distinct([pairs[i] for i in np.flatnonzero(mask)])[:count]


def read_first_pairs(
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


def texts_of(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value or []]


def bare_name(source: str) -> str:
    try:
        return name_and_weight(source)[0]
    except OrpoError:
        return source
