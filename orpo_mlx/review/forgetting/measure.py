"""The loss of a base and its adapters on general text, by paragraph: what was forgotten."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Progress
from orpo_mlx.extras import import_extra
from orpo_mlx.loading import check_prompt_ids, open_base
from orpo_mlx.model.adapters import AdapterSwitch, read_adapter
from orpo_mlx.model.base import Base
from orpo_mlx.model.divergence import word_logps
from orpo_mlx.model.layer_hooks import evaluating

LIMIT = 0.05  # nats a token, of the interval's lower end, from which on there is a warning
WINDOW = 512  # tokens that see each other: log-probs are kept for every word of the vocabulary


class Losses(NamedTuple):
    """Of one model on P paragraphs."""

    nats: np.ndarray  # (P,) float64, the sum over tokens of -log p
    tokens: np.ndarray  # (P,) int, predicted

    @property
    def per_token(self) -> float:
        """In nats; a paragraph counts by its tokens."""
        return float(self.nats.sum() / self.tokens.sum())


class Forgotten(NamedTuple):
    """How much an adapter's loss per token is above the base's, in nats; 95 % by paragraph."""

    paragraphs: int
    tokens: int
    base: float
    adapter: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """Above 0: the adapter predicts general text worse."""
        return self.adapter - self.base

    @property
    def is_large(self) -> bool:
        """Whether it is to be warned of."""
        return self.low > LIMIT


def measure_losses(
    options: BaseOptions,
    adapters: Sequence[Path | None],
    paragraphs: Sequence[str],
    report: Callback,
) -> list[Losses]:
    """The losses of the base with each adapter, None without; raises OrpoError if one is unusable.

    Paragraphs are read as raw text, each by itself, after the start token if there is one.
    """
    base = open_base(options)
    ids = _encode(base, paragraphs)
    total = len(adapters) * len(ids)
    losses = list[Losses]()
    for number, adapter in enumerate(adapters):
        nats = list[float]()
        with _adapted(base, adapter), evaluating(base.model):
            for own in ids:
                nats.append(sum(_iter_nats(base, own)))
                done = number * len(ids) + len(nats)
                report(Progress("Measuring what was forgotten", done, total))
        losses.append(Losses(np.array(nats), np.array([len(own) - 1 for own in ids])))
    return losses


def compare_losses(base: Losses, adapter: Losses) -> Forgotten:
    """The change per token, with its interval over paragraphs."""
    change = adapter.nats - base.nats
    low, high = _interval(change, base.tokens)
    return Forgotten(
        len(change), int(base.tokens.sum()), base.per_token, adapter.per_token, low, high
    )


def _interval(change: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """95 % of sum(change) / sum(tokens) over paragraphs, by Student's t on the ratio's residuals.

    Source: Cochran, Sampling Techniques, 3rd edition, eq. 6.13, for an infinite population.
    """
    stats = import_extra("scipy.stats", "judge")
    ratio = change.sum() / tokens.sum()
    error = stats.sem((change - ratio * tokens) / tokens.mean())
    if error == 0:
        return float(ratio), float(ratio)
    low, high = stats.t.interval(0.95, len(change) - 1, loc=ratio, scale=error)
    return float(low), float(high)


@contextmanager
def _adapted(base: Base, adapter: Path | None) -> Iterator[None]:
    """The base with an adapter on it while the block runs."""
    switch = AdapterSwitch(base.model, read_adapter(adapter)) if adapter else None
    try:
        yield
    finally:
        if switch:
            switch.set(False)


def _encode(base: Base, paragraphs: Sequence[str]) -> list[list[int]]:
    """The ids of each paragraph, all of which but the first are predicted."""
    encoded = [list(base.tokenizer.encode(paragraph)) for paragraph in paragraphs]
    if short := [p for p, ids in zip(paragraphs, encoded, strict=True) if len(ids) < 2]:
        raise collected("These paragraphs have one token, and nothing to predict:", short)
    check_prompt_ids(base.model, base.tokenizer, [i for ids in encoded for i in ids])
    return encoded


def _iter_nats(base: Base, ids: Sequence[int]) -> Iterator[float]:
    """-log p in nats of all ids but the first, a window at a time."""
    for start in range(0, len(ids) - 1, WINDOW):
        window = np.array(ids[start : start + WINDOW + 1])
        logps = word_logps(base.model, window)  # (T, V)
        own = mx.take_along_axis(logps, mx.array(window[1:])[:, None], axis=-1)
        nats = -float(np.array(own, np.float64).sum())
        if not np.isfinite(nats):
            raise OrpoError("its log-probs on general text are NaN or infinite")
        yield nats
