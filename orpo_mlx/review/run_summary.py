"""What a run folder holds for a model card: base, data, settings, held-out metrics."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.reading.hub_sets import is_hub_id
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import user_path
from orpo_mlx.public_names import public_name
from orpo_mlx.run_folder.folder import ADAPTER, CONFIG, METRICS
from orpo_mlx.run_folder.settings import load_run_config
from orpo_mlx.training.metrics.best import best_of
from orpo_mlx.training.metrics.log import load_metrics

# Of config.yaml, what describes how an adapter was made, in the order of the card.
SETTINGS = (
    "fine_tune_type", "rank", "alpha", "rslora", "dropout", "num_layers", "target_modules", "beta",
    "nll_on", "optimizer", "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm",
    "batch_size", "steps", "epochs", "max_seq_length", "max_prompt_length", "thinking",
    "template_date", "seed",
)  # fmt: skip
SHOWN_METRICS = (
    "rewards/accuracies",
    "loss",
    "nll_loss",
    "log_odds_chosen",
    "logps/chosen",
    "logps/rejected",
)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


class BaseFacts(NamedTuple):
    """What is known of the base of an adapter or the origin of a model."""

    name: str  # on the Hub, or what its folder is called; "" where it is not known
    folder: Path | None = None  # None: it is not on this machine
    license: str = ""  # "": not known
    license_name: str = ""
    license_link: str = ""
    original: str = ""  # what transformers loads, if that is known
    quantized: bool = False

    @property
    def on_hub(self) -> bool:
        return is_hub_id(self.name)


class HeldOut(NamedTuple):
    """Held-out metrics, before and after; names without `eval_`."""

    base: Mapping[str, float]
    adapter: Mapping[str, float]
    pairs: int | None  # None: not known
    measured: bool  # for the card, not during the run
    step: int | None = None  # after which the adapter was measured during the run; None: its last


class Sample(NamedTuple):
    """A prompt and two answers to it."""

    prompt: str
    before: str
    after: str


class RunFacts(NamedTuple):
    """A run as its folder records it; all empty for an adapter that other tools wrote."""

    config: dict[str, Any]
    rows: list[dict[str, float]]  # of metrics.jsonl
    adapter: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the card; from mlx-lm's own config where there is no run."""
        if self.config:
            values = {k: self.config[k] for k in SETTINGS if self.config.get(k) is not None}
        else:
            values = {**self.adapter.get("lora_parameters", {})}
        return {name: public_name(value) for name, value in values.items()}

    @property
    def adapter_step(self) -> int | None:
        """The step whose weights the adapter has; None where that is not known."""
        step = self.config.get("adapter_step")
        return step if type(step) is int and self.rows else None

    @property
    def which_step(self) -> str:
        """A sentence on the step whose weights the adapter has; "" where that is not known."""
        if self.adapter_step is None:
            return ""
        last = max(int(row["step"]) for row in self.rows)
        metric = str(self.config.get("best_metric", "eval_loss"))
        best = best_of(self.rows, metric)
        text = f"The weights are those after step {self.adapter_step} of {last}"
        if best and best.step == self.adapter_step:
            text += f", the best of the run's validations by {metric}"
        return f"{text}."

    @property
    def row_counts(self) -> tuple[int, int] | None:
        """Pairs and SFT rows of an epoch, of a run that had SFT rows."""
        row = next((row for row in self.rows if "sft_rows" in row), None)
        return None if row is None else (int(row["train_pairs"]), int(row["sft_rows"]))

    @property
    def held_out(self) -> HeldOut | None:
        """Before the first step and with the adapter as it is, if both were validated."""
        step = self.adapter_step
        evaluated = [r for r in self.rows if "eval_loss" in r and (not step or r["step"] <= step)]
        if len(evaluated) < 2:
            return None
        first, last = (
            {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")}
            for row in (evaluated[0], evaluated[-1])
        )
        if evaluated[0]["step"] != 0:
            return None
        return HeldOut(first, last, None, False, step and int(evaluated[-1]["step"]))


def facts_of_run(folder: Path) -> RunFacts:
    """What the files of a run folder hold; raises OrpoError if one is damaged."""
    config = load_run_config(folder) if (folder / CONFIG).is_file() else {}
    rows = load_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    return RunFacts(config, rows, _json(folder / ADAPTER[1]))


def base_of(run: RunFacts, model: str | None, base_id: str | None) -> BaseFacts:
    """The base of an adapter: what the user named, else what the run did."""
    if base_id is not None and not is_hub_id(base_id):
        raise OrpoError(f"--base-id {base_id}: must be USER/NAME, as on the Hub.")
    stored = (
        run.config.get("model")
        or run.adapter.get("model")
        or run.adapter.get("base_model_name_or_path")
    )
    named = model or str(stored or "")
    if not named:
        return BaseFacts(base_id or "")
    return add_card_facts(BaseFacts(base_id or hub_name(named), local_folder(named)))


def add_card_facts(base: BaseFacts) -> BaseFacts:
    """The same with what the base's own card and config say, if it is on this machine."""
    if base.folder is None:
        return base
    card = card_data(base.folder / "README.md")
    config = _json(base.folder / "config.json")
    parent = card.get("base_model") or ""
    parent = str(parent[0] if isinstance(parent, list) and parent else parent)
    quantized = "quantization" in config or "quantization_config" in config
    license = card.get("license") or config.get("license") or ""
    return base._replace(
        license=str(license if not isinstance(license, list) else license[0]).lower(),
        license_name=str(card.get("license_name") or ""),
        license_link=str(card.get("license_link") or ""),
        original=parent if quantized and is_hub_id(parent) else "" if quantized else base.name,
        quantized=quantized,
    )


def local_folder(name: str) -> Path | None:
    """The folder of a model if it is on this machine, the library's cache included."""
    folder = user_path(name)
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json")
    return Path(file).parent if isinstance(file, str) else None


def hub_name(named: str) -> str:
    """What a base is called: its id, also where a path leads into the library's cache."""
    if not named:
        return ""
    path = user_path(named)
    if not path.exists():
        return named if is_hub_id(named) else str(public_name(named))
    for part in path.resolve().parts:
        if match := _CACHED.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    return path.resolve().name


def card_data(file: Path) -> dict[str, Any]:
    """The metadata of a card; empty if there is none that can be read."""
    from huggingface_hub import RepoCard

    if not file.is_file():
        return {}
    try:
        values: dict[str, Any] = RepoCard(
            file.read_text(encoding="utf-8"), ignore_metadata_errors=True
        ).data.to_dict()
    except Exception:  # yaml's errors and those of the library: a card decides nothing
        return {}
    return values


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OrpoError(f"{file} is damaged ({error}).") from None
    return values if isinstance(values, dict) else {}
