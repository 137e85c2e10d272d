"""Two answers and a verdict on them."""

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import (
    begins_with_prompt,
    copied_prompt,
    first_column,
    guess_of,
    has_content,
    named_columns,
    number,
    prompt_columns,
)
from orpo_mlx.data.pairs.fields import MARGIN, TIED, media, missing, pair_of_two
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.row_format import (
    MIN_MARGIN,
    FormatSpec,
    Guess,
    Mapped,
    RowFormat,
    Values,
)
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

# Two answers, and the verdict on them with the way it is written.
ANSWERS = (
    ("human_ref_A", "human_ref_B"),
    ("response1", "response2"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("response_A", "response_B"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
    ("output_1", "output_2"),
    ("conversation_a", "conversation_b"),
)
VERDICTS = {
    "labels": "first",  # 1 is the first answer, 0 the second
    "overall_preference": "strength",  # below 0 is the first answer, 0 a tie
    "preference_strength": "strength",
    "better_response_id": "index",  # 0 or 1
    "winner": "name",  # a, model_a, 1, ... or tie
    "preference": "name",
    "preferred": "name",
}


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    verdict = first_column(
        values, mapped, "verdict", VERDICTS, lambda v: isinstance(v, int | float | str)
    )
    if not verdict:
        return
    for names in named_columns(mapped, ("first", "second"), ANSWERS):
        if not all(has_content(values.get(name)) for name in names):
            continue
        columns = dict(zip(("first", "second"), names, strict=True)) | {"verdict": verdict}
        prompts = prompt_columns(values, mapped, ("history", "context"))
        if all(begins_with_prompt(values[name]) for name in names):
            yield guess_of("ab", columns, copied_prompt(prompts))
            return
        for prompt in prompts:
            yield guess_of("ab", columns, prompt)
        return


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    columns = row_format.columns
    first, second, verdict = (columns[role] for role in ("first", "second", "verdict"))
    written = {
        "first": f'1 is "{first}", 0 is "{second}"',
        "strength": f'below 0 is "{first}", 0 is a tie',
        "index": f'0 is "{first}", 1 is "{second}"',
        "name": "names one of them, or a tie",
    }
    how = VERDICTS.get(verdict, "name")
    return f'A/B, "{first}" against "{second}" by "{verdict}" ({written[how]})'


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    values, columns = row.values, row_format.columns
    names = columns["first"], columns["second"]
    if faults := [*media(values), *missing(values, names)]:
        raise FaultyRowError(faults)
    first = _first_is_better(values, row_format, report)
    if first is None:
        return []
    names = names if first else names[::-1]
    return pair_of_two(row, row_format, names, report, values[names[0]], values[names[1]])


def _first_is_better(values: Values, row_format: RowFormat, report: ReadReport) -> bool | None:
    """Which of two answers the verdict prefers; None, counted, for neither."""
    column = row_format.columns["verdict"]
    verdict = values.get(column)
    way = VERDICTS.get(column, "name")
    if verdict is None:
        raise FaultyRowError([f'column "{column}" is null'])
    if way == "name":
        return _names_first(verdict, column, row_format, report)
    value = number(verdict)
    allowed = {"first": (0, 1), "index": (0, 1)}.get(way)
    if value is None or (allowed and value not in allowed):
        wanted = " or ".join(map(str, allowed)) if allowed else "a number"
        raise FaultyRowError([f'"{column}" must be {wanted}, found {verdict!r}'])
    if way == "strength":
        if value and abs(value) < (row_format.reading.min_margin or 0):
            report.leave_out(MARGIN)
            return None
        if not value:
            report.leave_out(TIED)
            return None
        return value < 0
    return value == (1 if way == "first" else 0)


def _names_first(
    verdict: Any, column: str, row_format: RowFormat, report: ReadReport
) -> bool | None:
    """Whether a verdict in words names the first answer; None, counted, for a tie."""
    word = str(verdict).strip().lower()
    first, second = (row_format.columns[role].lower() for role in ("first", "second"))
    if word in ("a", "1", "model_a", "first", first):
        return True
    if word in ("b", "2", "model_b", "second", second):
        return False
    if word.startswith("tie") or word in ("both", "neither", "same"):
        report.leave_out(TIED)
        return None
    raise FaultyRowError(
        [
            f'"{column}" names no answer: {verdict!r} (allowed: a, b, 1, 2, model_a, model_b, '
            f'"{first}", "{second}", tie)'
        ]
    )


FORMAT = FormatSpec(("ab",), _guess, _describe, _read, options=(MIN_MARGIN,), is_unsure=True)
