"""A verdict as one HTML file that loads nothing: the sentence, its picture, every judged prompt."""

from collections.abc import Iterator
from pathlib import Path

from orpo_mlx.data.pairs.message_parts.content import text_in
from orpo_mlx.files import replacing
from orpo_mlx.judging.forgotten import ForgottenByModels
from orpo_mlx.judging.verdict import (
    JudgedPrompt,
    Verdict,
    parts_of,
    setting_text,
    verdict_sentences,
)
from orpo_mlx.public_names import folder_remover, public_name
from orpo_mlx.review.forgetting.measure import LIMIT
from orpo_mlx.review.templates import page_environment

HASHES, DIGITS = ("adapter_sum", "chat_template"), 12  # as many digits as tell two apart


def save_verdict_page(verdict: Verdict, forgotten: ForgottenByModels, file: Path) -> None:
    """Write the page, completely or not at all."""
    with replacing(file) as new:
        new.write_text(render_verdict_page(verdict, forgotten), encoding="utf-8")


def render_verdict_page(verdict: Verdict, forgotten: ForgottenByModels) -> str:
    """The HTML of a verdict; all text of models and people is escaped."""
    environment = page_environment("orpo_mlx.judging")
    environment.globals |= {"content_of": lambda m: text_in(m.get("content") or "")}
    sentence, *more = verdict_sentences(verdict)
    return environment.get_template("verdict.html").render(
        verdict=verdict,
        sentence=sentence,
        more=more,
        forgotten=forgotten,
        forgotten_sentences=_without_folders(forgotten, verdict),
        limit=LIMIT,
        parts=parts_of(verdict),
        settings=_settings(verdict),
        outcomes=[(judged, _outcome(judged, verdict.names)) for judged in verdict.judged],
    )


def _without_folders(forgotten: ForgottenByModels, verdict: Verdict) -> list[str]:
    """What was forgotten, or why that is not known, without folders of this machine."""
    named = [name for model in verdict.models for name in (model.adapter, model.model) if name]
    cut = folder_remover([*named, *filter(None, [forgotten.text])])
    return [cut(sentence) for sentence in forgotten.sentences]


def _settings(verdict: Verdict) -> Iterator[tuple[str, str, str]]:
    """Each setting of the two models that either has, without folders of this machine."""
    one, other = (model.model_dump() for model in verdict.models)
    for name in one:
        if one[name] not in (None, {}) or other[name] not in (None, {}):
            digits = DIGITS if name in HASHES else None
            texts = [setting_text(public_name(own[name]))[:digits] for own in (one, other)]
            yield name.replace("_", " "), texts[0], texts[1]


def _outcome(judged: JudgedPrompt, names: tuple[str, str]) -> str:
    """What was voted, in words."""
    if judged.preferred is not None:
        return f"{names[judged.preferred]} preferred"
    return "both bad" if judged.vote.choice == "both_bad" else "a tie"
