"""What the rows of a source are read as, in one line for a person."""

from collections.abc import Sequence

from orpo_mlx.data.pairs.columns import TEXT_PROMPTS
from orpo_mlx.data.pairs.row_format import RowFormat, Values
from orpo_mlx.data.pairs.row_formats.ordered import guesses, spec_of


def sentence_of(row_format: RowFormat, values: Sequence[Values], present: set[str]) -> str:
    """What rows are read as; `present` are the columns that some of them fill."""
    columns = row_format.columns
    parts = [row_format.spec.describe(row_format, values)]
    if (prompt := columns.get("prompt", "prompt")) != "prompt":
        joined = f' and "{columns["input"]}"' if columns.get("input") in present else ""
        parts.append(f'the prompt is "{prompt}"{joined}')
    if "both" in columns:
        parts.append(f'the better and the worse answer in "{columns["both"]}"')
    if "copy" in columns:
        parts.append(f'"{columns["copy"]}" repeats the prompt')
    if row_format.repeats_prompt:
        parts.append("answers without the prompt that they repeat")
    if row_format.has_turns:
        parts.append("the prompt's turns as messages")
    for role, what in (("system", "system message"), ("tools", "tools"), ("history", "history")):
        if (name := columns.get(role)) in present:
            is_read = not row_format.spec.texts_alone
            parts.append(f'{what} in "{name}"' if is_read else f'"{name}" is not used')
    if (weight := columns.get("weight")) in present:
        parts.append(f'weights in "{weight}"')
    if row_format.has_ties:
        parts.append('rows with "status" tie are left out')
    parts += [f'"{name}" is not used' for name in _unused(row_format, values)]
    if scores := _unused_scores(row_format, values):
        parts.append(f'the scores in "{scores}" are not used')
    return "; ".join(parts)


def _unused(row_format: RowFormat, values: Sequence[Values]) -> list[str]:
    """Columns that often are of the prompt, and here are not."""
    names = (*TEXT_PROMPTS, "context", "history") if "prompt" in row_format.columns else ()
    return [
        name
        for name in names
        if name not in row_format.used
        and any(isinstance(v.get(name), str | list | dict) for v in values)
    ]


def _unused_scores(row_format: RowFormat, values: Sequence[Values]) -> str:
    """The column of scored answers that are not read, or nothing.

    One answer a row and its score are those of another format only where a row holds one answer.
    """
    if row_format.spec.is_scored or not values:
        return ""
    for guess in guesses(values[0], row_format.reading):
        spec = spec_of(guess.name)
        if spec.is_scored and (row_format.grouped or not spec.pair_up):
            named = dict(guess.columns)
            return named.get("scores") or named.get("answers") or named.get("score") or ""
    return ""
