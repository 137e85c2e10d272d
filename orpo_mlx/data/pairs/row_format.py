"""The shapes that rows can have, and how each is told in one line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.columns import TEXT_PROMPTS, VERDICTS, Guess, guesses

SHAPES = (
    "prompt", "implicit", "hh", "orca", "alpaca", "sharegpt", "ab", "ranked", "scored", "kto",
    "rendered",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How the user wants rows to be read; `columns` says what columns are called here."""

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    higher_is_better: bool | None = None
    min_margin: float | None = None


class Shape(NamedTuple):
    """What the rows of a source are, and all that reading one of them needs.

    `columns` are by role; `taken` are those that are no labels; `extras` are those that a row need
    not have. Pairs of a `grouped` shape are made of several rows.
    """

    name: str
    sentence: str
    grouped: bool
    guess: Guess
    columns: dict[str, str]
    taken: frozenset[str]
    extras: frozenset[str]
    reading: Reading
    higher_is_better: bool = True
    whole: bool = False  # answers repeat the prompt's text
    turns: bool = False  # the prompt's text is a conversation
    ties: bool = False  # a column "status" says which pairs are ties


def sentence_of(shape: Shape, values: Sequence[Mapping[str, Any]], present: set[str]) -> str:
    """What the rows are read as, for a person."""
    columns = shape.columns
    parts = [_KINDS[shape.name](shape, values)]
    if (prompt := columns.get("prompt", "prompt")) != "prompt":
        joined = f' and "{columns["input"]}"' if columns.get("input") in present else ""
        parts.append(f'the prompt is "{prompt}"{joined}')
    if "both" in columns:
        parts.append(f'the better and the worse answer in "{columns["both"]}"')
    if "copy" in columns:
        parts.append(f'"{columns["copy"]}" repeats the prompt')
    if shape.whole:
        parts.append("answers without the prompt that they repeat")
    if shape.turns and shape.name != "hh":
        parts.append("the prompt's turns as messages")
    for role, what in (("system", "system message"), ("tools", "tools"), ("history", "history")):
        if columns.get(role) in present:
            parts.append(f'{what} in "{columns[role]}"')
    if shape.ties:
        parts.append('rows with "status" tie are left out')
    parts += [f'"{name}" is not used' for name in _unused(shape, values)]
    if beside := _beside(shape, values):
        parts.append(f'the scores in "{beside}" are not used')
    return "; ".join(parts)


def _pair_kind(shape: Shape, values: Sequence[Mapping[str, Any]]) -> str:
    messages = any(isinstance(row.get(shape.columns.get("prompt", "")), list) for row in values)
    chosen = shape.columns.get("chosen", "")
    answers = any(not isinstance(row.get(chosen), str | None) for row in values)
    if shape.name == "sharegpt":
        return "conversations in ShareGPT form"
    kind = "conversational" if messages or answers else "texts"
    return f"{kind}, explicit prompt"


def _ab_kind(shape: Shape, values: Sequence[Mapping[str, Any]]) -> str:
    columns = shape.columns
    first, second, verdict = (columns[role] for role in ("first", "second", "verdict"))
    written = {
        "first": f'1 is "{first}", 0 is "{second}"',
        "strength": f'below 0 is "{first}", 0 is a tie',
        "index": f'0 is "{first}", 1 is "{second}"',
        "name": "names one of them, or a tie",
    }
    how = VERDICTS.get(verdict, "name")
    return f'A/B, "{first}" against "{second}" by "{verdict}" ({written[how]})'


def _scores_kind(shape: Shape, values: Sequence[Mapping[str, Any]]) -> str:
    columns, margin = shape.columns, shape.reading.min_margin
    score = columns.get("scores") or columns["score"]
    answers = columns.get("answers") or columns["completion"]
    how = "best against worst" if margin is None else f"every two at least {margin:g} apart"
    better = "greater" if shape.higher_is_better else "smaller"
    rows = " of neighbouring rows" if shape.grouped else ""
    return f'"{answers}"{rows}, {how} by "{score}" ({better} is better)'


def _kto_kind(shape: Shape, values: Sequence[Mapping[str, Any]]) -> str:
    completion, label = shape.columns["completion"], shape.columns["label"]
    true, false = (
        ("true", "false")
        if all(isinstance(v.get(label), bool) for v in values)
        else ("true or 1", "false or 0")
    )
    return f'unpaired, "{completion}" with "{label}" {true} against {false} of the same prompt'


_KINDS: dict[str, Callable[[Shape, Sequence[Mapping[str, Any]]], str]] = {
    "prompt": _pair_kind,
    "orca": _pair_kind,
    "alpaca": _pair_kind,
    "sharegpt": _pair_kind,
    "implicit": lambda shape, values: "conversational, implicit prompt",
    "hh": lambda shape, values: "texts in Human/Assistant turns, implicit prompt",
    "rendered": lambda shape, values: "texts with a template's markers, taken as they stand",
    "ab": _ab_kind,
    "ranked": _scores_kind,
    "scored": _scores_kind,
    "kto": _kto_kind,
}


def _unused(shape: Shape, values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that often are of the prompt, and here are not."""
    names = (*TEXT_PROMPTS, "context", "history") if "prompt" in shape.columns else ()
    return [
        name
        for name in names
        if name not in shape.taken and any(isinstance(v.get(name), str | list) for v in values)
    ]


def _beside(shape: Shape, values: Sequence[Mapping[str, Any]]) -> str:
    """The column of scored answers that stand beside what is read, or nothing."""
    if shape.name in ("ranked", "scored"):
        return ""
    found = guesses(values[0], shape.reading.columns) if values else []
    scored = [
        g for g in found if g.name == "ranked" or (g.name == "scored" and shape.name == "kto")
    ]
    named = dict(scored[0].columns) if scored else {}
    return named.get("scores") or named.get("answers") or named.get("score") or ""
