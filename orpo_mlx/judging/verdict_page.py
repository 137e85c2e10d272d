"""A verdict as one HTML file that loads nothing: the sentence, its picture, every judged prompt."""

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from orpo_mlx.data.pairs.message_parts.content import text_in
from orpo_mlx.files import replacing
from orpo_mlx.judging.forgotten import ForgottenByModels
from orpo_mlx.judging.verdict import JudgedPrompt, Verdict, verdict_sentences
from orpo_mlx.review.forgetting.measure import LIMIT

SETTINGS = ("model", "revision", "adapter", "temperature", "max_tokens", "thinking")


def save_verdict_page(verdict: Verdict, forgotten: ForgottenByModels, file: Path) -> None:
    """Write the page, completely or not at all."""
    with replacing(file) as new:
        new.write_text(render_verdict_page(verdict, forgotten), encoding="utf-8")


def render_verdict_page(verdict: Verdict, forgotten: ForgottenByModels) -> str:
    """The HTML of a verdict; all text of models and people is escaped."""
    environment = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("orpo_mlx.judging", "pages"),
                PackageLoader("orpo_mlx.review.pairs", "pages"),
            ]
        ),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"content_of": lambda m: text_in(m.get("content") or "")}
    sentence, *more = verdict_sentences(verdict)
    return environment.get_template("verdict.html").render(
        verdict=verdict,
        sentence=sentence,
        more=more,
        forgotten=forgotten,
        limit=LIMIT,
        settings=SETTINGS,
        outcomes=[(judged, _outcome(judged, verdict.names)) for judged in verdict.judged],
    )


def _outcome(judged: JudgedPrompt, names: tuple[str, str]) -> str:
    """What was voted, in words."""
    if judged.preferred is not None:
        return f"{names[judged.preferred]} preferred"
    return "both bad" if judged.vote.choice == "both_bad" else "a tie"
