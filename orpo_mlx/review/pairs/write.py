"""Canonical files of pairs of any row format: one, or one for each split."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orpo_mlx.config.data import DataConvertConfig, DataSplitConfig
from orpo_mlx.data.pairs.load import PreferencePair
from orpo_mlx.data.pairs.split import prompt_hash, split_by_prompt
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.splits import SPLITS
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_folder, recover, remove, replacing
from orpo_mlx.review.pairs.canonical import save_lines, save_parquet
from orpo_mlx.review.pairs.read_sources import (
    find_named,
    finish_reading,
    iter_sources,
    refuse_existing,
    refuse_weights,
)

KINDS = (".jsonl", ".parquet")


class Written(NamedTuple):
    """How many pairs are in each file, and what gave none, by reason."""

    files: dict[str, int]
    left_out: dict[str, int]


def convert_pairs(config: DataConvertConfig, report: Callback = lambda event: None) -> Written:
    """Write the pairs of the settings' sources as one canonical file.

    Raises OrpoError, and leaves no file, for rows that cannot be read.
    """
    kind = config.output.suffix
    if kind not in KINDS:
        raise OrpoError(f"--output {config.output}: must end in {' or '.join(KINDS)}.")
    recover(config.output, report)
    refuse_existing([config.output], "--output", config.overwrite, config.data)
    read_report = ReadReport()
    pairs = _pairs(config, read_report, report)
    with replacing(config.output) as made:
        lines = made if kind == ".jsonl" else made.with_name("lines")
        count = save_lines(pairs, lines)
        if kind == ".parquet":
            save_parquet(lines, made)
    return Written({str(config.output): count}, dict(read_report.rows_left_out.most_common()))


def split_pairs(config: DataSplitConfig, report: Callback = lambda event: None) -> Written:
    """Write train, valid and test.jsonl, no prompt in two of them.

    Raises OrpoError, and leaves no file, for rows that cannot be read, or too few prompts.
    """
    targets = {name: config.output / f"{name}.jsonl" for name in SPLITS}
    check_folder(config.output)
    for target in targets.values():
        recover(target, report)
    refuse_existing(list(targets.values()), "--output", config.overwrite, config.data)
    fractions = {"valid": config.valid_fraction, "test": config.test_fraction}
    wanted = ["train", *(name for name, fraction in fractions.items() if fraction)]
    read_report = ReadReport()
    hashes = array("Q")
    with ExitStack() as stack:
        made = {name: stack.enter_context(replacing(targets[name])) for name in wanted}
        lines = made["train"].with_name("lines")
        save_lines(_collect_hashes(_pairs(config, read_report, report), hashes), lines)
        masks = _masks(np.frombuffer(hashes, np.uint64), wanted, fractions, config.seed, report)
        for name, file in made.items():
            _copy_lines(lines, file, masks[name])
        # Pairs that another split holds out must never be trained on, nor the reverse: the old
        # train file goes before anything is put in place, and the new one, made first, comes last.
        remove(targets["train"])
        for name in set(SPLITS) - set(wanted):
            remove(targets[name])
    counts = {str(targets[name]): int(masks[name].sum()) for name in wanted}
    return Written(counts, dict(read_report.rows_left_out.most_common()))


def _pairs(
    config: DataConvertConfig | DataSplitConfig, read_report: ReadReport, report: Callback
) -> Iterator[PreferencePair]:
    """All pairs; raises OrpoError after the last for whatever was wrong."""

    def log(text: str) -> None:
        report(Notice(text))

    sources = find_named(config, log)
    refuse_weights(sources)
    yield from iter_sources(config, sources, read_report, report, log)
    finish_reading(read_report, config)


def _collect_hashes(
    pairs: Iterable[PreferencePair], hashes: "array[int]"
) -> Iterator[PreferencePair]:
    """The pairs, with the hash of each prompt added to `hashes`."""
    for pair in pairs:
        hashes.append(prompt_hash(pair))
        yield pair


def _masks(
    hashes: np.ndarray,  # (N,) uint64
    wanted: list[str],
    fractions: Mapping[str, float],
    seed: int,
    report: Callback,
) -> dict[str, np.ndarray]:  # each (N,) bool
    """Which pairs each split gets; valid first, so that it is what training would hold out."""
    prompts = len(np.unique(hashes))
    if prompts < len(wanted):
        raise OrpoError(
            f"{', '.join(wanted[:-1])} and {wanted[-1]} need a prompt each (prompts found: "
            f"{prompts}). Leave one out with --valid-fraction 0 or --test-fraction 0."
        )
    parts = [*wanted[1:], "train"]
    masks, filled = split_by_prompt(hashes, [fractions[name] for name in parts[:-1]], seed)
    for part in filled:
        report(
            Notice(
                f"No prompt's draw falls into {parts[part]}.jsonl: it gets the one with the "
                f"{'highest' if parts[part] == 'train' else 'nearest'} draw."
            )
        )
    training = np.ones(len(hashes), bool)
    for mask in masks:
        training &= ~mask
    return dict(zip(parts, [*masks, training], strict=True))


def _copy_lines(source: Path, target: Path, chosen: np.ndarray) -> None:
    with source.open("rb") as lines, target.open("wb") as stream:
        stream.writelines(compress(lines, chosen))
