"""A few pairs of a source as a model sees them, or, without a model, as its rows hold them."""

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.data import DataPreviewConfig
from orpo_mlx.data.pairs.load import PreferencePair, bad_rows_error, iter_pairs, log_notes
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO, describe_unpaired
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Source
from orpo_mlx.data.tokens.pipeline import first_pairs
from orpo_mlx.errors import MAX_SHOWN
from orpo_mlx.events import Callback, Notice
from orpo_mlx.read_options import reading_of
from orpo_mlx.review.pairs import check_page
from orpo_mlx.review.pairs.read_sources import find_named, no_pair_error
from orpo_mlx.review.pairs.view import PairView, view_messages, view_pair
from orpo_mlx.review.pairs.visible import iter_pieces

MEANINGS = {
    "prompt": "given",
    "chosen": "learned",
    "rejected": "pushed away",
    "cut": "beyond the length limit, or an end token",
}


class Preview(NamedTuple):
    """What is shown. `model` is empty where the pairs are messages, not tokens."""

    sources: list[str]
    model: str
    notices: list[str]  # how the rows are read
    pairs: list[PairView]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pairs = [pair.as_dict() for pair in self.pairs]
        return {
            "sources": self.sources,
            "model": self.model,
            "told": self.notices,
            "pairs": pairs,
        }


def preview(config: DataPreviewConfig, report: Callback = lambda event: None) -> Preview:
    """The first pairs, or random ones, of what the settings name.

    A row that cannot be read is a warning. Raises OrpoError if no pair is found.
    """
    notices: list[str] = []
    sources = find_named(config, notices.append)
    read_report = ReadReport()
    pairs = sample_pairs(
        (
            pair
            for source in sources
            for pair in iter_pairs(source, reading_of(config), read_report, notices.append)
        ),
        config.pairs,
        config.seed,
    )
    if not pairs:
        if read_report.problems:
            raise bad_rows_error(read_report.problems)
        raise no_pair_error(config.data, read_report)
    _warn(read_report, len(pairs), report)
    if config.model is None:
        return Preview(config.data, "", notices, [view_messages(pair) for pair in pairs])
    return Preview(
        config.data, config.model, notices, _as_seen(config, config.model, sources, pairs, report)
    )


def sample_pairs(
    pairs: Iterable[PreferencePair], count: int, seed: int | None
) -> list[PreferencePair]:
    """The first pairs, or with a seed random ones of all, in the order of the source."""
    if seed is None:
        return list(islice(pairs, count))
    draw = random.Random(seed)
    kept: list[tuple[int, PreferencePair]] = []
    for number, pair in enumerate(pairs):
        if number < count:
            kept.append((number, pair))
        elif (slot := draw.randrange(number + 1)) < count:
            kept[slot] = (number, pair)
    return [pair for _, pair in sorted(kept, key=lambda one: one[0])]


def save_preview(shown: Preview, file: Path) -> None:
    """Write the page, completely or not at all."""
    check_page.save(render_preview(shown), file)


def render_preview(shown: Preview) -> str:
    """The HTML of a preview; all text of the data is escaped."""
    return check_page.render(
        "preview.html", shown.sources, shown=shown, meanings=MEANINGS, pieces=iter_pieces
    )


def _as_seen(
    config: DataPreviewConfig,
    model: str,
    sources: Sequence[Source],
    pairs: Sequence[PreferencePair],
    report: Callback,
) -> list[PairView]:
    """The pairs through the model's tokenizer and template."""
    # Without --model nothing here needs mlx.
    from orpo_mlx.loading import build_encoder, open_tokenizer, template_of, thinking_for

    base, template = open_tokenizer(config, model), template_of(config)
    first = [pair for source in sources for pair in first_pairs(source, reading_of(config))]
    encoder = build_encoder(
        base,
        template,
        thinking_for(template, [*first, *pairs], report),
        config,
    )
    return [view_pair(pair, encoder) for pair in pairs]


def _warn(read_report: ReadReport, pairs: int, report: Callback) -> None:
    """Warn of the rows that were read on the way to the pairs and gave none."""
    for problem in read_report.problems[:MAX_SHOWN]:
        report(Notice(str(problem), warning=True))
    if (more := len(read_report.problems) - MAX_SHOWN) > 0:
        report(Notice(f"... and {more:,} more faults", warning=True))
    for why, count in read_report.rows_left_out.most_common():
        report(Notice(f"left out: {count:,} x {why}", warning=True))
    log_notes(read_report, lambda text: report(Notice(text, warning=True)))
    if what := describe_unpaired(read_report, pairs):
        report(Notice(f"{what}. {WHAT_TO_DO}", warning=True))
