"""The card of what is pushed: text from the templates here, metadata in the Hub's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    ModelCard,
    ModelCardData,
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.hub.card_data import CHECKED_PAIRS, CheckResult, SourceFacts
from orpo_mlx.review.run_summary import SHOWN_METRICS, BaseFacts, HeldOut, RunFacts, Sample

CURVES = "curves.png"
TASK = "text-generation"
KINDS = {"lora": "LoRA", "dora": "DoRA", "full": "Full-weight"}
METRIC_NAMES = {"rewards/accuracies": "accuracy"}


class CardFacts(NamedTuple):
    """All the facts in a model card."""

    repo: str
    what: str  # adapter or model
    base: BaseFacts
    run: RunFacts
    sources: Sequence[SourceFacts] = ()
    checked: CheckResult = CheckResult(0, [])
    held_out: HeldOut | None = None
    measured_on: str = ""
    samples: Sequence[Sample] = ()
    max_tokens: int = 0
    curves: bool = False
    mlx_folder: str = "."  # where mlx-lm's layout is in the repo; "": it is not there
    peft: bool = False
    max_lora_rank: int = 0  # for vLLM; 0: it takes no such rank


class DatasetFacts(NamedTuple):
    """All the facts in the card of a set of pairs."""

    repo: str
    files: Sequence[tuple[str, int]]  # with how many pairs each holds
    read_as: str
    checked: CheckResult


def build_model_card(facts: CardFacts) -> ModelCard:
    """The card of an adapter or a model."""
    base, run = facts.base, facts.run
    name = facts.repo.split("/")[-1]
    held_out = facts.held_out
    text = _render(
        "model_card.md.jinja",
        **facts._asdict() | {"curves": CURVES if facts.curves else ""},
        title=name,
        name=name,
        limit=CHECKED_PAIRS,
        license=base.license,
        license_link=base.license_link,
        settings=run.settings,
        base_link=_link(base),
        base_name=base.name or "BASE",
        kind=KINDS.get(str(run.adapter.get("fine_tune_type", "lora")), "LoRA"),
        original=base.original or "the unquantized original of the base",
        row_counts=run.row_counts,
        metrics=_compared(held_out) if held_out else [],
    )
    return ModelCard(f"---\n{_metadata(facts, name).to_yaml()}\n---\n\n{text}")


def build_dataset_card(facts: DatasetFacts) -> DatasetCard:
    """The card of a set of pairs."""
    name = facts.repo.split("/")[-1]
    data = DatasetCardData(
        pretty_name=name,
        task_categories=[TASK],
        size_categories=[_size(facts.files)],
        tags=["preference", "orpo", "dpo"],
    )
    text = _render("dataset_card.md.jinja", title=name, limit=CHECKED_PAIRS, **facts._asdict())
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def with_own_text(own: Path, made: ModelCard | DatasetCard) -> ModelCard | DatasetCard:
    """The user's own card, its text as it is, with what its metadata lack.

    Raises OrpoError if its metadata cannot be read.
    """
    kind = type(made)
    try:
        card = kind(own.read_text(encoding="utf-8"))
        merged = {**made.data.to_dict(), **card.data.to_dict()}
        metadata = kind.card_data_class(**merged).to_yaml()
    except Exception as error:  # of yaml, of the library and of the disk
        raise OrpoError(
            f"{own}: its metadata cannot be read ({' '.join(str(error).split())}). Fix what is "
            "between the --- lines, or remove the file."
        ) from None
    return kind(f"---\n{metadata}\n---\n{card.text}")


def _link(base: BaseFacts) -> str:
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})"
    return f"`{base.name}`" if base.name else "a base that it does not name"


def _metadata(facts: CardFacts, name: str) -> ModelCardData:
    base, adapter = facts.base, facts.what == "adapter"
    data: dict[str, Any] = {
        "library_name": "peft" if facts.peft else "mlx",
        "pipeline_tag": TASK,
        "tags": ["mlx", "orpo", "orpo-mlx", "preference", *(["lora"] if adapter else [])],
        "base_model": base.name if base.on_hub else None,
        "base_model_relation": ("adapter" if adapter else "finetune") if base.on_hub else None,
        "datasets": list(dict.fromkeys(s.name for s in facts.sources if s.on_hub)) or None,
        "license": base.license or None,
        "license_name": base.license_name or None,
        "license_link": base.license_link or None,
    }
    if facts.held_out:
        data |= {"model_name": name, "eval_results": _results(facts, facts.held_out)}
    return ModelCardData(**{key: value for key, value in data.items() if value is not None})


def _results(facts: CardFacts, held_out: HeldOut) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            task_name="Preference",
            dataset_type="preference-pairs",
            dataset_name=facts.measured_on or "held-out pairs",
            metric_type=METRIC_NAMES.get(metric, metric),
            metric_name=f"held-out {metric}",
            metric_value=round(held_out.adapter[metric], 6),
        )
        for metric in SHOWN_METRICS
        if metric in held_out.adapter
    ]


def _compared(held_out: HeldOut) -> list[tuple[str, str, str]]:
    base, adapter = held_out.base, held_out.adapter
    return [
        (METRIC_NAMES.get(name, name), f"{base[name]:.4f}", f"{adapter[name]:.4f}")
        for name in SHOWN_METRICS
        if name in base and name in adapter
    ]


def _size(files: Sequence[tuple[str, int]]) -> str:
    """The Hub's word for how large a data set is."""
    pairs = sum(count for _, count in files)
    steps = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    number = next((n for n in range(len(steps) - 1) if pairs < 1000 * 10**n), len(steps) - 1)
    return f"{steps[number - 1]}<n<{steps[number]}" if number else f"n<{steps[0]}"


def _render(template: str, **facts: Any) -> str:
    # Markdown, so nothing is escaped; but the text of a table cell is.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "quoted": _quoted, "written": _written}
    return environment.get_template(template).render(facts)


def _written(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_written(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """A text in a cell of a table: one line, none of it markup."""
    escaped = "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in text)
    return escaped.replace("<", "&lt;").replace("\r", "").replace("\n", "<br>")


def _quoted(text: str) -> str:
    return _cell(" ".join(text.split()))
