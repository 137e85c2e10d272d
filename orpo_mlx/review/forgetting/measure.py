"""The loss of a base and its adapters on general text, by paragraph: what was forgotten."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Progress
from orpo_mlx.extras import import_extra
from orpo_mlx.files import check_regular
from orpo_mlx.loading import open_base
from orpo_mlx.model.adapters import AdapterSwitch, read_adapter
from orpo_mlx.model.base import Base
from orpo_mlx.model.divergence import word_logps
from orpo_mlx.model.layer_hooks import evaluating

TEXT = "general.txt"
FEWEST = 2  # paragraphs
LIMIT = 0.05  # nats a token, of the interval's lower end, from which on there is a warning
RESAMPLES = 9_999


class Losses(NamedTuple):
    """Of one model on P paragraphs."""

    nats: np.ndarray  # (P,) float64, the sum over tokens of -log p
    tokens: np.ndarray  # (P,) int, predicted

    @property
    def per_token(self) -> float:
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


def load_paragraphs(file: Path | None) -> list[str]:
    """The paragraphs of a text, apart by empty lines; of the bundled one for None.

    Raises OrpoError for what cannot be read, and for fewer than two paragraphs.
    """
    if file is None:
        text = files("orpo_mlx.review.forgetting").joinpath(TEXT).read_text(encoding="utf-8")
        return _paragraphs(text)
    check_regular(file)
    try:
        paragraphs = _paragraphs(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OrpoError(f"--forget-text {file}: cannot be read ({why}).") from None
    if len(paragraphs) < FEWEST:
        raise OrpoError(
            f"--forget-text {file}: must hold {FEWEST} paragraphs or more, apart by empty lines, "
            f"found {len(paragraphs)}."
        )
    return paragraphs


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
    total = len(adapters) * len(paragraphs)
    losses = list[Losses]()
    for number, adapter in enumerate(adapters):
        own = list[tuple[float, int]]()
        with _adapted(base, adapter):
            for one in _iter_losses(base, paragraphs):
                own.append(one)
                done = number * len(paragraphs) + len(own)
                report(Progress("Measuring what was forgotten", done, total))
        nats, tokens = zip(*own, strict=True)
        losses.append(Losses(np.array(nats, np.float64), np.array(tokens)))
    return losses


@contextmanager
def _adapted(base: Base, adapter: Path | None) -> Iterator[None]:
    """The base with an adapter on it while the block runs."""
    switch = AdapterSwitch(base.model, read_adapter(adapter)) if adapter else None
    try:
        yield
    finally:
        if switch:
            switch.set(False)


def compare_losses(base: Losses, adapter: Losses) -> Forgotten:
    """The change per token, with its interval over paragraphs by scipy's bootstrap."""
    change = adapter.nats - base.nats
    low, high = _interval(change, base.tokens)
    return Forgotten(
        len(change), int(base.tokens.sum()), base.per_token, adapter.per_token, low, high
    )


def _interval(change: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """95 % of sum(change) / sum(tokens) when paragraphs are drawn again."""
    if float(np.ptp(change / tokens)) == 0:
        return float(change[0] / tokens[0]), float(change[0] / tokens[0])
    interval = (
        import_extra("scipy.stats", "judge")
        .bootstrap(
            (change, tokens),
            lambda nats, count, axis: nats.sum(axis=axis) / count.sum(axis=axis),
            paired=True,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        .confidence_interval
    )
    return float(interval.low), float(interval.high)


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def _iter_losses(base: Base, paragraphs: Sequence[str]) -> Iterator[tuple[float, int]]:
    """Of each paragraph the sum of -log p in nats, and of how many tokens."""
    with evaluating(base.model):
        for paragraph in paragraphs:
            ids = np.array(base.tokenizer.encode(paragraph))
            if len(ids) < 2:
                raise OrpoError(f"--forget-text: a paragraph is one token long: {paragraph!r}.")
            logps = word_logps(base.model, ids)
            own = mx.take_along_axis(logps, mx.array(ids[1:])[:, None], axis=-1)
            yield -float(np.array(mx.sum(own))), len(ids) - 1
