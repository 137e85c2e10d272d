"""The pairs of a run: sources to token ids, held-out pairs split off, weights; all reported."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.data.pairs.split import held_out_by_rule_1, split_by_prompt
from orpo_mlx.data.pairs.unpaired import WHAT_TO_DO, describe_unpaired
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import (
    Source,
    check_parts,
    find_sources,
    held_out_sources,
    unused_weights,
)
from orpo_mlx.data.tokens.cache import writable_cache
from orpo_mlx.data.tokens.encode import count_reasoned, thinking_for_counts
from orpo_mlx.data.tokens.load_sources import BadRowsError, RowsOf, load_stores
from orpo_mlx.data.tokens.pipeline import Loader, first_pairs, report_of
from orpo_mlx.data.tokens.store import Store, StoredPairs
from orpo_mlx.errors import DiskError, OrpoError, collected
from orpo_mlx.events import Callback, Notice, Progress
from orpo_mlx.files import temporary_folder
from orpo_mlx.loading import Template, build_encoder, report_counts
from orpo_mlx.model.base import Base
from orpo_mlx.read_options import reading_of
from orpo_mlx.run_folder.settings import RULES
from orpo_mlx.training.evaluate import UNWEIGHTED

TRAIN_SPLITS, VALID_SPLITS = ("train",), ("valid", "test")
IN_SFT_DATA = "is also in --sft-data"
_NONE = np.zeros(0, bool)

RESUME_HINT = (
    "--resume: the rows that a run was begun with are needed: restore them, or begin again with "
    "--overwrite."
)


class RunPairs(NamedTuple):
    """What a run trains on and is measured on, and whether the template's reasoning is on."""

    train: StoredPairs
    valid: StoredPairs | None
    thinking: bool


class RunSources(NamedTuple):
    """Where the training pairs come from, the held-out ones, if from elsewhere, and SFT rows."""

    train: list[Source]
    valid: list[Source]
    sft: list[Source] = []  # noqa: RUF012  (immutable by use)


def load_run_pairs(
    config: TrainConfig,
    sources: RunSources,
    base: Base,
    template: Template,
    report: Callback,
    *,
    rules: int = RULES,  # those that the run was begun under
) -> RunPairs:
    """The token ids of a run's pairs, from the cache or made now.

    Raises one OrpoError for all rows that cannot be read or rendered.
    """
    read = _how_read(config, sources)
    cache, why = writable_cache()
    with temporary_folder(report) as temporary:
        if why:
            report(Notice(why, warning=True))
        try:
            stores, thinking = _stores_somewhere(
                config, base, template, read, (cache, temporary), report
            )
        except BadRowsError as error:
            raise OrpoError(f"{error}\n{RESUME_HINT}" if config.resume else str(error)) from None
        # Open files outlive their folder's removal.
        ends = len(sources.train), len(sources.train) + len(sources.sft)
        training, sft, held_out = stores[: ends[0]], stores[ends[0] : ends[1]], stores[ends[1] :]
        for name, part in (("training", training), ("SFT", sft), ("held-out", held_out)):
            _report_reading(name, part, thinking, template, report)
        report_weights(training, sft, held_out, report)
        rows, named = [*training, *sft], [*sources.train, *sources.sft]
        if held_out:
            valid = StoredPairs(held_out)
            for part, where in ((training, "is also trained on"), (sft, IN_SFT_DATA)):
                warn_of_leak(part, valid, where, report)
            return RunPairs(_weighted(rows, named, config.seed), valid, thinking)
        pairs = StoredPairs(training)
        mask = _held_out(pairs.prompt_hashes, config, rules, report) if training else _NONE
        if not mask.any():
            return RunPairs(_weighted(rows, named, config.seed), None, thinking)
        report(
            Notice(
                f"Held out {mask.sum():,} of {len(mask):,} pairs (--valid-fraction "
                f"{config.valid_fraction:g}), no prompt on both sides."
            )
        )
        held = pairs.select(np.flatnonzero(mask))
        warn_of_leak(sft, held, IN_SFT_DATA, report)
        mask = np.concatenate([mask, np.zeros(sum(map(len, sft)), bool)])
        return RunPairs(_weighted(rows, named, config.seed, mask), held, thinking)


def _held_out(
    hashes: np.ndarray,  # (N,) uint64, of each pair's prompt
    config: TrainConfig,
    rules: int,
    report: Callback,
) -> np.ndarray:  # (N,) bool
    """Which pairs are held out; reported where their draws alone do not decide it."""
    fraction, seed = config.valid_fraction, config.seed
    if rules == 1:
        return held_out_by_rule_1(hashes, fraction, seed)
    (mask,), filled = split_by_prompt(hashes, [fraction], seed)
    if 0 in filled:
        report(
            Notice(
                f"No prompt's draw is below --valid-fraction {fraction:g}: the one with the "
                "lowest is held out."
            )
        )
    elif 1 in filled:
        report(
            Notice(
                f"Every prompt's draw is below --valid-fraction {fraction:g}: the one with the "
                "highest is trained on."
            )
        )
    elif fraction and len(hashes) and not mask.any():
        report(Notice("All pairs have the same prompt, which is trained on: none is held out."))
    return mask


def find_run_sources(config: TrainConfig, report: Callback) -> RunSources:
    """The sources that a run names; raises OrpoError that lists all that are missing."""
    how: dict[str, Any] = {
        "subset": config.subset,
        "revision": config.data_revision,
        "log": lambda text: report(Notice(text)),
    }
    train = find_sources(config.data, splits=TRAIN_SPLITS, split=config.split, **how)
    sft = find_sources(
        config.sft_data, splits=TRAIN_SPLITS, flag="--sft-data", split=config.split, **how
    )
    check_parts([*config.data, *config.sft_data], split=config.split)
    named = [*config.data, *config.sft_data, *config.valid_data]
    check_parts(named, subset=config.subset, revision=config.data_revision)
    if config.valid_data:
        flag = "--valid-data"
        valid = find_sources(config.valid_data, splits=VALID_SPLITS, flag=flag, **how)
        for text in unused_weights(valid):
            report(Notice(text))
        return RunSources(train, valid, sft)
    return RunSources(train, held_out_sources(config.data, splits=VALID_SPLITS, **how), sft)


def _how_read(config: TrainConfig, sources: RunSources) -> list[RowsOf]:
    """The sources of pairs, then of SFT rows, then of held-out pairs, and how each is read."""
    reading = reading_of(config)
    sft = replace(reading, sft=True)
    return [
        *(RowsOf(source, reading) for source in sources.train),
        *(RowsOf(source, sft) for source in sources.sft),
        *(RowsOf(source, reading) for source in sources.valid),
    ]


def _stores_somewhere(
    config: TrainConfig,
    base: Base,
    template: Template,
    sources: Sequence[RowsOf],
    folders: tuple[Path | None, Path],
    report: Callback,
) -> tuple[list[Store], bool]:
    """`_stores` in the cache, or, where its disk is full, in a folder for this run alone."""
    cache, temporary = folders
    try:
        return _stores(config, base, template, sources, cache or temporary, report)
    except DiskError as error:
        if cache is None:
            raise
        why = f"{error} Token ids are kept for this run only; set ORPO_MLX_CACHE to another folder."
        report(Notice(why, warning=True))
        return _stores(config, base, template, sources, temporary, report)


def _stores(
    config: TrainConfig,
    base: Base,
    template: Template,
    sources: Sequence[RowsOf],
    cache: Path,
    report: Callback,
) -> tuple[list[Store], bool]:
    """A store for each source, all with the same thinking switch.

    `auto` depends on all responses; where the cache does not know them, the first rows decide,
    and all is encoded again if a later row shows that they were wrong.
    """

    encoder = build_encoder(base, template, False, config)
    # A tokenizer with mlx-lm's own renderer is not sent to other processes.
    processes = 1 if encoder.tokenizer is base.tokenizer else config.num_proc
    off = Loader(encoder, reading_of(config), cache, config.bad_rows == "drop", processes)
    on = replace(off, encoder=replace(encoder, thinking=True))

    def progress(name: str, done: int, total: int) -> None:
        report(Progress(f"Tokenizing {name}", done, total))

    if template.thinking != "auto":
        switched = template.thinking == "on"
        return load_stores(on if switched else off, sources, progress), switched
    known = {
        number: store
        for number, (source, reading) in enumerate(sources)
        if (store := replace(off, reading=reading).cached(source)) is not None
    }
    if any(report_of(store).reasoned for store in known.values()) or (
        len(known) < len(sources) and _begins_reasoned(sources)
    ):
        return load_stores(on, sources, progress), True
    try:
        stores = load_stores(off, sources, progress, known)
        if not any(report_of(store).reasoned for store in stores):
            return stores, False
    except BadRowsError as error:
        if not error.reasoned:
            raise
    report(Notice("Some later responses contain reasoning: all pairs are encoded again with it."))
    return load_stores(on, sources, progress), True


def _begins_reasoned(sources: Sequence[RowsOf]) -> bool:
    """Whether the first rows hold reasoning; what is wrong with them is left for later."""
    for source, reading in sources:
        with suppress(OrpoError):
            if count_reasoned(first_pairs(source, reading)):
                return True
    return False


def warn_of_leak(train: Sequence[Store], valid: StoredPairs, where: str, report: Callback) -> None:
    """Warn of held-out pairs with prompts that are trained on; `where`, in words."""
    if not train:
        return
    known, asked = np.sort(StoredPairs(train).prompt_hashes), valid.prompt_hashes
    nearest = np.searchsorted(known, asked).clip(max=len(known) - 1)
    hint = "" if where == IN_SFT_DATA else " (orpo-mlx data check lists them)"
    if shared := int((known[nearest] == asked).sum()):
        report(
            Notice(
                f"{shared:,} of {len(valid):,} held-out pairs have a prompt that {where}: they "
                f"show little of what is learned{hint}.",
                warning=True,
            )
        )


def report_weights(
    training: Sequence[Store], sft: Sequence[Store], held_out: Sequence[Store], report: Callback
) -> None:
    """Report the weights of rows where they are not all 1; raises OrpoError if all are 0."""
    for store in (*training, *sft):
        if store.weights:
            least, most, average = store.weights
            name = report_of(store).source
            report(Notice(f"{name}: weights from {least:g} to {most:g}, {average:.3g} on average."))
    if all(store.weights and store.weights[1] == 0 for store in (*training, *sft)):
        raise OrpoError(
            "Every row to train on has the weight 0: nothing would be learned. Give some of them "
            'another "weight", or none.'
        )
    if any(store.weights for store in (*training, *held_out)):
        report(Notice(UNWEIGHTED))


def _report_reading(
    name: str, stores: Sequence[Store], thinking: bool, template: Template, report: Callback
) -> None:
    """Report how rows were read, and what was cut or left out, by reason."""
    total, mode = ReadReport(), "on" if thinking else "off"
    for store in stores:
        read_report = report_of(store)
        report(Notice(f"{read_report.source}: read as: {read_report.read_as}."))
        if what := describe_unpaired(read_report, read_report.pairs):
            report(Notice(f"{read_report.source}: {what}. {WHAT_TO_DO}", warning=True))
        total.add(read_report)
    if not stores:
        return
    _, sentence = thinking_for_counts(
        template.thinking if template.thinking != "auto" else mode,
        total.reasoned,
        total.pairs if name == "SFT" else 2 * total.pairs,
    )
    if sentence:
        report(Notice(sentence, warning=True))
    report_counts(name, total, report)


def _weighted(
    stores: Sequence[Store], sources: Sequence[Source], seed: int, held: np.ndarray | None = None
) -> StoredPairs:
    """All pairs that are not `held` out, each as often as its source's weight asks.

    Raises OrpoError for sources of whose pairs a weight leaves none.
    """
    if held is None and all(source.weight == 1 for source in sources):
        return StoredPairs(stores)
    rows, empty, start = [], [], 0
    for number, (store, source) in enumerate(zip(stores, sources, strict=True)):
        own = np.arange(start, start + len(store), dtype=np.int32)
        own = own if held is None else own[~held[own]]
        copies, part = int(source.weight), source.weight % 1
        drawn = np.random.default_rng([seed, number]).permutation(own)[: round(part * len(own))]
        rows += [own] * copies + [np.sort(drawn)]
        if len(own) and not copies and not len(drawn):
            pairs = f"{len(own)} pair{'s' * (len(own) > 1)}"
            empty.append(f"{source.name}:{source.weight:g}: of its {pairs} that leaves none")
        start += len(store)
    if empty:
        why = collected("Weights that are too small:", empty)
        raise OrpoError(f"{why}\nGive a larger weight, or leave the source out.")
    return StoredPairs(stores, np.concatenate(rows))
