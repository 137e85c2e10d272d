"""What was forgotten, next to a verdict: measured once, kept in forgotten.json of the session."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback
from orpo_mlx.files import load_json_object, replacing, save_json
from orpo_mlx.judging.answers import AnswerSource, adapter_sum
from orpo_mlx.review.forgetting.measure import (
    LIMIT,
    Forgotten,
    compare_losses,
    load_paragraphs,
    measure_losses,
)

FILE = "forgotten.json"


class ForgottenByModels(NamedTuple):
    """Of each of the models that has an adapter; or why nothing was measured."""

    text: str  # what it was measured on
    models: dict[str, Forgotten]  # by name
    why_not: str = ""

    @property
    def sentences(self) -> list[str]:
        """What was forgotten, a sentence for each adapter."""
        if self.why_not:
            return [f"What was forgotten: not measured, since {self.why_not}."]
        return [_sentence(name, one, self.text) for name, one in self.models.items()]

    @property
    def facts(self) -> dict[str, Any]:
        """The same for --json."""
        models = {name: one._asdict() | {"change": one.change} for name, one in self.models.items()}
        return {
            "text": self.text,
            "models": models,
            "why_not": self.why_not,
            "sentences": self.sentences,
        }


def measure_forgotten(
    folder: Path,
    models: tuple[AnswerSource, AnswerSource],
    names: tuple[str, str],
    text: Path | None,
    report: Callback,
) -> ForgottenByModels:
    """The loss of each adapter on general text against its base's, from forgotten.json if it can.

    Raises OrpoError for a text that cannot be read; a model that cannot is a reason.
    """
    paragraphs = load_paragraphs(text)
    name = str(text) if text else f"{len(paragraphs)} paragraphs of general text"
    adapters = {n: m for n, m in zip(names, models, strict=True) if m.adapter}
    if why := _why_not(models, adapters):
        return ForgottenByModels(name, {}, why)
    key = _key(paragraphs, models)
    if kept := _kept(folder / FILE, key):
        return ForgottenByModels(name, kept)
    try:
        base, *others = measure_losses(
            _options(models[0]),
            [None, *(Path(m.adapter or "") for m in adapters.values())],
            paragraphs,
            report,
        )
    except OrpoError as error:
        return ForgottenByModels(name, {}, str(error).rstrip("."))
    measured = {n: compare_losses(base, o) for n, o in zip(adapters, others, strict=True)}
    with replacing(folder / FILE) as new:
        save_json(new, {"key": key, "models": {n: one._asdict() for n, one in measured.items()}})
    return ForgottenByModels(name, measured)


def _why_not(models: tuple[AnswerSource, AnswerSource], adapters: dict[str, AnswerSource]) -> str:
    one, other = models
    if not adapters:
        return "neither of the two is an adapter"
    if (one.model, one.revision) != (other.model, other.revision):
        return f"the two have different bases ({one.model}, {other.model})"
    for source in adapters.values():
        try:
            now = adapter_sum(Path(source.adapter or ""))
        except OrpoError as error:
            return str(error).rstrip(".")
        if source.adapter_sum and now != source.adapter_sum:
            return f"{source.adapter} is not the adapter that answered any more"
    return ""


def _options(source: AnswerSource) -> BaseOptions:
    given = {"model": source.model, "revision": source.revision, "eos_token": source.eos_token}
    return BaseOptions.model_validate({n: value for n, value in given.items() if value is not None})


def _key(paragraphs: list[str], models: tuple[AnswerSource, AnswerSource]) -> str:
    """What the numbers follow from."""
    facts = [[m.model, m.revision, m.adapter, m.adapter_sum] for m in models]
    return hashlib.sha256(repr([paragraphs, facts]).encode()).hexdigest()


def _kept(file: Path, key: str) -> dict[str, Forgotten]:
    """What was measured before, if it was the same."""
    try:
        content = load_json_object(file) if file.exists() else {}
        if content.get("key") != key:
            return {}
        return {name: Forgotten(**values) for name, values in content["models"].items()}
    except (OrpoError, KeyError, TypeError, AttributeError):
        return {}


def _sentence(name: str, one: Forgotten, text: str) -> str:
    direction = "above" if one.change >= 0 else "below"
    sentence = (
        f"On {text} ({one.tokens:,} tokens) the loss of {name} is {abs(one.change):.3f} nats a "
        f"token {direction} the base's ({one.low:+.3f} to {one.high:+.3f})"
    )
    if not one.is_large:
        return f"{sentence}."
    return (
        f"Warning: {sentence}: more than {LIMIT:g} was forgotten. Train with a lower learning rate "
        "or fewer steps."
    )
