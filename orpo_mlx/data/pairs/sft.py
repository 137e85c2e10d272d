"""Rows of a prompt and one answer, as --sft-data takes them: what is read of each, and as what."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from orpo_mlx.data.pairs.columns import (
    CONVERSATIONS,
    ROLES,
    begins_with_prompt,
    guess_of,
    has_content,
    prompt_columns,
    prompt_copied,
)
from orpo_mlx.data.pairs.messages import PreferencePair
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, Reading, RowFormat, Values
from orpo_mlx.data.pairs.single_answers import COMPLETIONS, read_answer
from orpo_mlx.data.pairs.turns import has_turns
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

ANSWERS = ("chosen", *COMPLETIONS, "chosen_response", "preferred_output", "accepted")
USUAL = Guess("sft", (("completion", "chosen"), ("prompt", "prompt")))
# What --columns names for pairs alone does not concern these rows.
_ROLES = ("prompt", "chosen", "completion", "system", "tools", "input", "history", "weight")
_HOW = (
    "Name its columns with --columns prompt=NAME,chosen=NAME; docs/data.md shows what --sft-data "
    "reads."
)


def own_reading(reading: Reading, present: Collection[str]) -> Reading:
    """How SFT rows are read next to pairs, whose columns may have other names."""
    named = {
        role: column
        for role, column in reading.columns.items()
        if role not in ROLES or (role in _ROLES and column in present)
    }
    if "chosen" in named:
        named["completion"] = named.pop("chosen")
    return replace(Reading(sft=True), columns=named)


def why_unknown(names: Collection[str]) -> str:
    """Why rows with these columns are not SFT rows; "" if it is better to name what each lacks."""
    if "prompt" in names and "chosen" in names:
        return ""
    return f"no prompt with an answer (columns: {', '.join(names)}). {_HOW}"


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    named = (mapped["completion"],) if "completion" in mapped else (*ANSWERS, *CONVERSATIONS)
    for column in named:
        value, answer = values.get(column), {"completion": column}
        if not has_content(value):
            continue
        if begins_with_prompt(value) or (isinstance(value, str) and has_turns(value)):
            yield guess_of("sft", answer, prompt_copied(values, mapped, answer))
            return
        if prompts := list(prompt_columns(values, mapped, answers=(column,))):
            yield from (guess_of("sft", answer, prompt) for prompt in prompts)
            return


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    columns = row_format.columns
    whole = "" if "prompt" in columns else "the last answer of "
    unused = any(row.get("rejected") is not None for row in values)
    more = '; "rejected" is not used' if unused else ""
    return f'SFT rows, {whole}"{columns["completion"]}" is learned{more}'


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    answers = read_answer(row, row_format, "completion", 1.0, report)
    return [
        PreferencePair(
            answer.prompt,
            answer.answer[0],
            answer.answer[0],
            answer.location,
            answer.tools,
            len(answer.answer) - 1,
            answer.labels,
            is_sft=True,
        )
        for answer in answers
    ]


FORMAT = FormatSpec(("sft",), _guess, _describe, _read)
