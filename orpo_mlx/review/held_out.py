"""The pairs that a run did not train on, read again from its sources."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.pairs.load import PreferencePair, iter_pairs
from orpo_mlx.data.pairs.row_format import Reading
from orpo_mlx.data.pairs.split import prompt_hash
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Source, bare_name, find_sources, held_out_sources
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event
from orpo_mlx.run_folder.settings import rules_of

MAX_PAIRS = 50_000  # read to find those that a run held out
RUN_SPLITS = ("valid", "test")  # of training data, as a run prefers them
GIVEN_SPLITS = ("test", "valid")


class TrainedRun(NamedTuple):
    """A run whose held-out pairs are wanted."""

    folder: Path
    config: dict[str, Any]  # of config.yaml
    base: Path  # the folder of its base


def held_out_pairs(run: TrainedRun, data: Sequence[str], count: int) -> list[PreferencePair]:
    """The first pairs with prompts that a run did not train on; empty if none can be had.

    They are those of `data`, else what the run itself held out.
    """
    if data:
        pairs = read_first_pairs(data, run.config, 10 * count, GIVEN_SPLITS)
        return _distinct(pairs)[:count]
    try:
        return _distinct(_held_out_by_run(run, 10 * count))[:count]
    except (OrpoError, ValidationError):
        return []


def _held_out_by_run(run: TrainedRun, count: int) -> list[PreferencePair]:
    """The pairs given to the run to validate on, or all that it split off."""
    config = run.config
    if given := as_texts(config.get("valid_data")):
        here = [source for source in given if Path(bare_name(source)).exists()]
        return read_first_pairs(here, config, count, GIVEN_SPLITS)
    named = [bare_name(source) for source in as_texts(config.get("data"))]
    # A source that is not here may have had a split of its own.
    if not all(Path(name).exists() for name in named):
        return []
    if sources := held_out_sources(named, splits=RUN_SPLITS):
        return _first_pairs(sources, _reading(config), count)
    training = find_sources(named, splits=("train",), split=config.get("split"))
    pairs = _first_pairs(training, _own_reading(config), MAX_PAIRS + 1)
    if not pairs or len(pairs) > MAX_PAIRS:
        return []
    locations = _split_again(run)
    return [pair for pair in pairs if pair.location in locations]


def _split_again(run: TrainedRun) -> set[str]:
    """Where the pairs are that a run held out, of those that are left after tokenizing.

    By rules 1 none, unless a checkpoint shows that the pairs are the same: there the side of each
    follows from all of them.
    """
    from orpo_mlx.loading import open_tokenizer, template_of
    from orpo_mlx.run_folder.checkpoints import pairs_of_checkpoint
    from orpo_mlx.training.dataset import find_run_sources, load_run_pairs

    def ignore(event: Event) -> None:
        """The run reported all this."""

    options = TrainConfig.model_validate(
        run.config | {"model": str(run.base), "revision": None, "trust_remote_code": False}
    )
    sources, template = find_run_sources(options, ignore), template_of(options)
    tokenizer = open_tokenizer(options, options.model)
    rules = rules_of(run.config)
    train, valid, _ = load_run_pairs(options, sources, tokenizer, template, ignore, rules=rules)
    if rules == 1 and pairs_of_checkpoint(run.folder) != train.digest:
        return set()
    return {pair.location for pair in valid or []}


def read_first_pairs(
    sources: Sequence[str], config: dict[str, Any], limit: int, splits: Sequence[str] = ("train",)
) -> list[PreferencePair]:
    """The first pairs of sources; rows that cannot be read are passed over."""
    files = find_sources(list(sources), splits=splits, split=config.get("split"))
    return _first_pairs(files, _reading(config), limit)


def _reading(config: dict[str, Any]) -> Reading:
    return Reading(config.get("format") or "auto", config.get("columns") or {})


def _own_reading(config: dict[str, Any]) -> Reading:
    """As the run read its training pairs; other rows may have no scores."""
    higher, lower = config.get("higher_is_better"), config.get("lower_is_better")
    better = bool(higher) if higher or lower else None
    return replace(_reading(config), higher_is_better=better, min_margin=config.get("min_margin"))


def _first_pairs(sources: Sequence[Source], reading: Reading, limit: int) -> list[PreferencePair]:
    pairs: list[PreferencePair] = []
    for source in sources:
        for pair in iter_pairs(source, reading, ReadReport()):
            pairs.append(pair)
            if len(pairs) >= limit:
                return pairs
    return pairs


def _distinct(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The first pair of every prompt."""
    return list({prompt_hash(pair): pair for pair in reversed(pairs)}.values())[::-1]


def as_texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value or []]
