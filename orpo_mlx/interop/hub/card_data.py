"""What a card says about the pairs of a run: sources, what checking them finds, held-out ones."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.quality.check import check_pairs
from orpo_mlx.data.reading.sources import bare_name, is_hub_source
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import user_path
from orpo_mlx.review.held_out import as_texts, read_first_pairs

CHECKED_PAIRS = 1_000


_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:\"']+/)+")


class SourceFacts(NamedTuple):
    """A source of pairs as a card names it."""

    name: str
    on_hub: bool
    is_sft: bool = False  # its rows are trained on by their likelihood alone


class CheckResult(NamedTuple):
    """What `data check` finds in the first pairs of a run."""

    pairs: int
    findings: list[tuple[str, str, str]]  # severity, what, how many rows
    skipped: str = ""  # why nothing was checked


def sources_of(config: dict[str, Any]) -> list[SourceFacts]:
    """The sources that a run names, training pairs first."""
    pairs = [*as_texts(config.get("data")), *as_texts(config.get("valid_data"))]
    sft = as_texts(config.get("sft_data"))
    return [
        _source(name, is_sft)
        for names, is_sft in ((pairs, False), (sft, True))
        for name in dict.fromkeys(map(bare_name, names))
    ]


def _source(name: str, is_sft: bool) -> SourceFacts:
    on_hub = is_hub_source(name)
    return SourceFacts(name if on_hub else name.rstrip("/").split("/")[-1], on_hub, is_sft)


def check_sources(config: dict[str, Any]) -> CheckResult:
    """Check the first pairs of a run's own files; or the reason why that cannot be done."""
    if config.get("sft_data") and not config.get("data"):
        return CheckResult(0, [])
    local = [s for s in map(bare_name, as_texts(config.get("data"))) if user_path(s).exists()]
    if not local:
        return CheckResult(0, [], "The pairs are not on the machine that made this card.")
    try:
        return check_first_pairs(read_first_pairs(local, config, CHECKED_PAIRS))
    except OrpoError as error:  # what was trained on can no longer be read
        return CheckResult(0, [], f"Not checked: {_anonymous(str(error).splitlines()[0])}")


def check_first_pairs(pairs: Sequence[PreferencePair]) -> CheckResult:
    """What checking the first of these pairs finds, or why they are not checked."""
    pairs = pairs[:CHECKED_PAIRS]
    try:
        report = check_pairs({"train": pairs})
    except OrpoError as error:  # the extra is not installed
        return CheckResult(0, [], f"Not checked: {error}")
    findings = [
        (f.severity, _anonymous(f.what), f"{len(f.rows):,} of {f.total:,}" if f.rows else "")
        for f in report.findings
    ]
    return CheckResult(len(pairs), findings)


def _anonymous(text: str) -> str:
    """A text without the folders of this machine."""
    return _PATH.sub("", text)
