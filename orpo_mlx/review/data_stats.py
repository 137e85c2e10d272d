"""Counts and lengths of all pairs that a data command names, split by split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from orpo_mlx.config import DataStatsConfig
from orpo_mlx.data.encoded import BLOCK
from orpo_mlx.data.encoding import Encoder
from orpo_mlx.data.formats import PreferencePair
from orpo_mlx.data.pipeline import first_pairs
from orpo_mlx.data.sources import Source
from orpo_mlx.data.stats import Stats
from orpo_mlx.data.template import RefusedError, Rendered
from orpo_mlx.review.data_sources import Found, find_by_split, iter_found
from orpo_mlx.training.metrics import Callback, Notice
from orpo_mlx.training.reading import reading_of


class DataStats(NamedTuple):
    """What was counted, and what became no pair or no tokens, by reason."""

    splits: dict[str, Stats]
    left_out: Counter[str]
    max_seq_length: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "splits": {n: stats.as_dict(self.max_seq_length) for n, stats in self.splits.items()},
            "left_out": dict(self.left_out.most_common()),
        }


def data_stats(config: DataStatsConfig, emit: Callback = lambda event: None) -> DataStats:
    """Count all pairs of the settings' sources; with a model, their tokens too.

    Raises OrpoError for rows that cannot be read.
    """
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            emit(Notice(text))

    found = Found()
    sources = find_by_split(config, tell)
    encoder = _encoder(config, [source for own in sources.values() for source in own], emit)
    splits = {}
    for split, own in sources.items():
        splits[split] = Stats()
        pairs = iter_found(config, own, found, emit, tell)
        while block := list(islice(pairs, BLOCK)):
            _count(block, encoder, splits[split], found.drops)
    found.finish(config)
    return DataStats(splits, found.drops, config.max_seq_length)


def _encoder(config: DataStatsConfig, sources: Iterable[Source], emit: Callback) -> Encoder | None:
    """The encoder of the model, if one is named."""
    if config.model is None:
        return None
    # Without --model nothing here needs mlx.
    from orpo_mlx.training.setup import build_encoder, open_tokenizer, template_of, thinking_for

    base, template = open_tokenizer(config, config.model), template_of(config)
    first = [pair for source in sources for pair in first_pairs(source, reading_of(config))]
    return build_encoder(base, template, thinking_for(template, first, emit))


def _count(
    pairs: Sequence[PreferencePair], encoder: Encoder | None, stats: Stats, drops: Counter[str]
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
            drops[f"no tokens: {error}"] += 1
    for prompt, chosen, rejected in encoder.encode_all(accepted, texts):
        stats.tokens.add(len(prompt), len(chosen), len(rejected))
