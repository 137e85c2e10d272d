"""What was forgotten, next to a verdict: measured once, kept in forgotten.json of the session."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.files import load_json_object, replacing, save_json
from orpo_mlx.judging.answers import AnswerSource, adapter_sum
from orpo_mlx.review.forgetting.measure import LIMIT, Forgotten, compare_losses, measure_losses
from orpo_mlx.review.forgetting.paragraphs import load_paragraphs

FILE = "forgotten.json"
# By what an adapter's numbers in the file are recognized as its own.
FACTS = ("model", "revision", "adapter", "adapter_sum")
Adapters = Mapping[str, AnswerSource]  # by what the verdict calls them


class GeneralText(NamedTuple):
    """What is forgotten or not: paragraphs, and what a sentence calls them."""

    name: str
    paragraphs: Sequence[str]

    @property
    def sum(self) -> str:
        """A hash of the paragraphs."""
        return sha256("\n\n".join(self.paragraphs).encode()).hexdigest()


class ForgottenByModels(NamedTuple):
    """Of each of the models that has an adapter; or why nothing was measured."""

    text: str  # what it was measured on
    models: dict[str, Forgotten]  # by name
    why_not: str = ""

    @property
    def sentences(self) -> list[str]:
        """What was forgotten, a sentence for each adapter."""
        if self.why_not:
            return [f"What was forgotten was not measured: {self.why_not}."]
        return [_sentence(name, one, self.text) for name, one in self.models.items()]

    @property
    def facts(self) -> dict[str, Any]:
        """The same for --json."""
        models = {
            name: one._asdict() | {"change": one.change, "is_large": one.is_large}
            for name, one in self.models.items()
        }
        return {"text": self.text, "models": models, "why_not": self.why_not}


def load_general_text(file: Path | None) -> GeneralText:
    """The text of --forget-text, or the bundled one; raises OrpoError if it cannot be used."""
    paragraphs = load_paragraphs(file)
    return GeneralText(str(file or f"{len(paragraphs)} paragraphs of general text"), paragraphs)


def measure_forgotten(
    folder: Path,
    models: Sequence[AnswerSource],
    names: Sequence[str],
    text: GeneralText,
    report: Callback,
) -> ForgottenByModels:
    """The loss of each adapter on general text against its base's, from forgotten.json if it can.

    A model that cannot be measured is a reason, not an error.
    """
    adapters = {n: m for n, m in zip(names, models, strict=True) if m.adapter}
    if kept := _kept(folder / FILE, adapters, text):
        return ForgottenByModels(text.name, kept)
    if why := _why_not(adapters):
        return ForgottenByModels(text.name, {}, why)
    try:
        measured = _measure(adapters, text, report)
    except (OrpoError, RuntimeError, MemoryError) as error:  # of the device, too
        return ForgottenByModels(text.name, {}, str(error).rstrip("."))
    _keep(folder / FILE, adapters, text, measured)
    return ForgottenByModels(text.name, measured)


def _why_not(adapters: Adapters) -> str:
    if not adapters:
        return "neither of the two has an adapter"
    for source in adapters.values():
        try:
            now = adapter_sum(Path(source.adapter or ""))
        except OrpoError as error:
            return str(error).rstrip(".")
        if source.adapter_sum and now != source.adapter_sum:
            return f"the adapter in {source.adapter} is another one than that which answered"
    return ""


def _measure(adapters: Adapters, text: GeneralText, report: Callback) -> dict[str, Forgotten]:
    """Each base is loaded once, for all of its adapters."""
    by_base = dict[tuple[str, str | None], list[str]]()
    for name, source in adapters.items():
        by_base.setdefault((source.model, source.revision), []).append(name)
    measured = dict[str, Forgotten]()
    for (model, revision), names in by_base.items():
        folders = [Path(adapters[name].adapter or "") for name in names]
        options = BaseOptions(model=model, revision=revision)
        base, *others = measure_losses(options, [None, *folders], text.paragraphs, report)
        measured |= {n: compare_losses(base, own) for n, own in zip(names, others, strict=True)}
    return measured


def _kept(file: Path, adapters: Adapters, text: GeneralText) -> dict[str, Forgotten]:
    """What was measured before of the same adapters, be they still there or not."""
    try:
        content = load_json_object(file) if file.exists() else {}
        if content.get("text_sum") != text.sum:
            return {}
        models = content["models"]
        if any(models[name]["of"] != _facts(source) for name, source in adapters.items()):
            return {}
        return {name: Forgotten(**models[name]["measured"]) for name in adapters}
    except (OrpoError, KeyError, TypeError, AttributeError):
        return {}


def _keep(
    file: Path, adapters: Adapters, text: GeneralText, measured: Mapping[str, Forgotten]
) -> None:
    models = {
        name: {"of": _facts(adapters[name]), "measured": one._asdict()}
        for name, one in measured.items()
    }
    with replacing(file) as new:
        save_json(new, {"text": text.name, "text_sum": text.sum, "models": models})


def _facts(source: AnswerSource) -> dict[str, Any]:
    return {name: getattr(source, name) for name in FACTS}


def _sentence(name: str, one: Forgotten, text: str) -> str:
    direction = "above" if one.change >= 0 else "below"
    sentence = (
        f"On {text} ({one.tokens:,} tokens) the loss of {name} is {abs(one.change):.3f} nats a "
        f"token {direction} its base's ({one.low:+.3f} to {one.high:+.3f})"
    )
    if not one.is_large:
        return f"{sentence}."
    return (
        f"Warning: {sentence}: more than {LIMIT:g} was forgotten. Train with a lower learning rate "
        "or fewer steps."
    )
