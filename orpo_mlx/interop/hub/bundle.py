"""What one push sends: files of a folder without what is private, a card, and its curves."""

from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.interop import ExportConfig, PushConfig
from orpo_mlx.data.pairs.load import RECOGNIZED_ROWS, bad_rows_error, iter_pairs, recognize
from orpo_mlx.data.pairs.row_format import Reading
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Source, iter_rows
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import load_json_object
from orpo_mlx.interop.hub.card import (
    CURVES,
    CardFacts,
    DatasetFacts,
    build_dataset_card,
    build_model_card,
    with_own_text,
)
from orpo_mlx.interop.hub.card_data import check_first_pairs, check_sources, sources_of
from orpo_mlx.interop.hub.uploads import (
    CARD,
    PEFT_WEIGHTS,
    WEIGHTS,
    PathScrubber,
    Upload,
    adapter_uploads,
    dataset_uploads,
    folder_kind,
    left_out,
    model_uploads,
)
from orpo_mlx.interop.peft.vllm import max_lora_rank
from orpo_mlx.review.curves import curves_or_reason
from orpo_mlx.review.held_out import TrainedRun, held_out_pairs
from orpo_mlx.review.run_summary import (
    BaseFacts,
    HeldOut,
    RunFacts,
    Sample,
    add_card_facts,
    base_of,
    facts_of_run,
    hub_name,
    local_folder,
)

MLX_FOLDER = "mlx"


class Bundle(NamedTuple):
    """What is pushed: its kind, its files, the card among them, and the commit's message."""

    what: str  # adapter, model or dataset
    uploads: list[Upload]
    card: bytes
    message: str

    @property
    def repo_type(self) -> str:
        """The Hub's word for such a repo."""
        return "dataset" if self.what == "dataset" else "model"


def pack(config: PushConfig, temporary: Path, report: Callback) -> Bundle:
    """The bundle of what the settings name; raises OrpoError if it is nothing to push."""
    kind = folder_kind(config.folder)
    report(Notice(f"{config.folder} holds {_article(kind)}."))
    if kind == "dataset":
        _refuse_unused(config, "a set of pairs", "layout", "base_id", "data", "model")
        bundle = _pack_dataset(config, report)
    elif kind == "model":
        _refuse_unused(config, "a model", "layout", "data")
        bundle = _pack_model(config, report)
    else:
        if kind == "peft adapter":
            _refuse_unused(config, "an adapter in PEFT's layout", "data")
        bundle = _pack_adapter(config, kind, temporary, report)
    others = left_out(config.folder, bundle.uploads)
    if others:
        report(Notice(f"Not pushed: {', '.join(others)}."))
    return bundle


def _article(kind: str) -> str:
    return {
        "adapter": "an adapter",
        "peft adapter": "an adapter in PEFT's layout",
        "model": "a model",
        "dataset": "pairs",
    }[kind]


def _refuse_unused(config: PushConfig, what: str, *names: str) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in names if name in config.model_fields_set]
    if flags:
        raise OrpoError(f"{', '.join(flags)}: {config.folder} is {what}, where this has no effect.")


def _pack_adapter(config: PushConfig, kind: str, temporary: Path, report: Callback) -> Bundle:
    folder, run = config.folder, facts_of_run(config.folder)
    base = base_of(run, config.model, config.base_id)
    _warn_of_base(base, report)
    layout = "peft" if kind == "peft adapter" else config.layout
    if kind == "peft adapter" and config.layout != "peft" and "layout" in config.model_fields_set:
        raise OrpoError(
            f"--layout {config.layout}: {folder} has only PEFT's layout. Push the run folder "
            "instead, or make one with orpo-mlx import."
        )
    uploads, rank = [], 0
    if layout in ("peft", "both"):
        source = folder if kind == "peft adapter" else _to_peft(config, base, temporary, report)
        scrub = PathScrubber(source, base.original or base.name)
        uploads += adapter_uploads(source, PEFT_WEIGHTS, "", scrub)
        rank = max_lora_rank(load_json_object(source / "adapter_config.json")) or 0
    if layout in ("mlx", "both"):
        prefix = f"{MLX_FOLDER}/" if layout == "both" else ""
        uploads += adapter_uploads(folder, WEIGHTS, prefix, PathScrubber(folder, base.name))
    held_out = _held_out(config, run, base, report) if kind == "adapter" else None
    curves, why = curves_or_reason(run.rows)
    if why:
        report(Notice(why, warning=True))
    sources = sources_of(run.config)
    facts = CardFacts(
        config.repo, "adapter", base, run, sources, check_sources(run.config), held_out,
        ", ".join(source.name for source in sources_of({"data": config.data})),
        _samples(config, run, base, report) if kind == "adapter" else [], config.max_tokens,
        curves is not None, {"mlx": ".", "both": MLX_FOLDER, "peft": ""}[layout], layout != "mlx",
        rank,
    )  # fmt: skip
    uploads += [Upload(CURVES, curves)] if curves else []
    return _with_card(config, "adapter", uploads, build_model_card(facts), report)


def _to_peft(config: PushConfig, base: BaseFacts, temporary: Path, report: Callback) -> Path:
    """The adapter in PEFT's layout, in a folder of its own."""
    from orpo_mlx.interop.peft.exporter import export_peft

    settings = ExportConfig(
        adapter=config.folder,
        to="peft",
        output=temporary / "peft",
        base_id=base.original or config.base_id,
        model=_base_to_load(config, base, f"--layout {config.layout}"),
    )
    return export_peft(settings, report).output


def _held_out(
    config: PushConfig, run: RunFacts, base: BaseFacts, report: Callback
) -> HeldOut | None:
    """Held-out metrics: measured if pairs are given, else those of the run."""
    if not config.data:
        return run.held_out
    model = _base_to_load(config, base, "--data")
    from orpo_mlx.config.train import EvaluateConfig
    from orpo_mlx.training.evaluate import evaluate

    settings = EvaluateConfig(model=model, adapter=config.folder, data=config.data)
    comparison = evaluate(settings, report)
    assert comparison.adapter is not None
    return HeldOut(
        comparison.base.means(), comparison.adapter.means(), len(comparison.base.pairs), True
    )


def _samples(config: PushConfig, run: RunFacts, base: BaseFacts, report: Callback) -> list[Sample]:
    """Answers before and after; none where base or held-out prompts are not on this machine."""
    if not config.samples:
        return []
    if base.folder is None:
        report(Notice(f"The card shows no answers: the base {base.name} is not on this machine."))
        return []
    trained = TrainedRun(config.folder, run.config, base.folder)
    pairs = held_out_pairs(trained, config.data, config.samples)
    if not pairs:
        report(
            Notice(
                "The card shows no answers: no held-out prompts are on this machine (--data names "
                "some)."
            )
        )
        return []
    from orpo_mlx.interop.hub.card_answers import sample_answers

    return sample_answers(
        str(base.folder), config.folder, pairs, max_tokens=config.max_tokens, report=report
    )


def _base_to_load(config: PushConfig, base: BaseFacts, flag: str) -> str:
    if base.folder is not None:
        return str(base.folder)
    if config.dry_run or not base.on_hub:
        raise OrpoError(
            f"{flag} needs the base {base.name}, which is not on this machine. Name its folder "
            "with --model."
        )
    return base.name


def _warn_of_base(base: BaseFacts, report: Callback) -> None:
    """Report what the card does not know about the base."""
    if not base.name:
        report(
            Notice("The card cannot name the base: give it with --base-id USER/NAME.", warning=True)
        )
        return
    if not base.on_hub:
        report(
            Notice(
                f"The base is called {base.name} in the card; if it is on the Hub, give its id "
                "with --base-id USER/NAME.",
                warning=True,
            )
        )
    if not base.license:
        report(
            Notice(
                f"The card names no license: that of the base {base.name} is not known on this "
                "machine."
            )
        )


def _pack_model(config: PushConfig, report: Callback) -> Bundle:
    folder = config.folder
    origin = BaseFacts(
        config.base_id or config.model or "",
        local_folder(config.model) if config.model else folder,
    )
    base = add_card_facts(origin._replace(name=hub_name(origin.name)))
    _warn_of_base(base, report)
    uploads = model_uploads(folder, PathScrubber(folder, base.name))
    facts = CardFacts(config.repo, "model", base, RunFacts({}, [], {}))
    return _with_card(config, "model", uploads, build_model_card(facts), report)


def _pack_dataset(config: PushConfig, report: Callback) -> Bundle:
    uploads = dataset_uploads(config.folder)
    counts, pairs, read_as = [], [], []
    read_report = ReadReport()
    for upload in uploads:
        assert isinstance(upload.source, Path)
        source = Source(upload.path, (upload.source,), (upload.path,))
        if first := list(islice(iter_rows(source, ReadReport()), RECOGNIZED_ROWS)):
            read_as.append(recognize(first, Reading(), upload.path).sentence)
        file_pairs = list(iter_pairs(source, Reading(), read_report))
        counts.append((upload.path, len(file_pairs)))
        pairs += file_pairs
    if read_report.problems:
        raise bad_rows_error(read_report.problems)
    if not pairs:
        raise OrpoError("No pairs to push.")
    facts = DatasetFacts(
        config.repo, counts, "; ".join(dict.fromkeys(read_as)), check_first_pairs(pairs)
    )
    return _with_card(config, "dataset", uploads, build_dataset_card(facts), report)


def _with_card(
    config: PushConfig, what: str, uploads: list[Upload], card: Any, report: Callback
) -> Bundle:
    own = config.folder / CARD
    if config.folder.is_dir() and own.is_file():
        card = with_own_text(own, card)
        report(
            Notice(
                f"{own} is used as the card: its text unchanged, missing metadata added. Remove it "
                "to have a card written."
            )
        )
    text = str(card).encode()
    return Bundle(what, [Upload(CARD, text), *uploads], text, f"Push {what} with orpo-mlx")
