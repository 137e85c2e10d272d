"""Texts that already carry a template's markers, which the model reads as they are."""

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import guess_of, pair_columns, prompt_columns
from orpo_mlx.data.pairs.fields import PROMPT_NOT_REPEATED, media, missing, pair_of_texts
from orpo_mlx.data.pairs.message_parts.content import is_blank
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.turns import is_rendered, rendered_prompt
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    for columns, answers in pair_columns(values, mapped):
        if not all(isinstance(v, str) for v in answers):
            continue
        prompts = list(prompt_columns(values, mapped))
        texts = [(prompt, values[prompt["prompt"]]) for prompt in prompts]
        own = [prompt for prompt, text in texts if isinstance(text, str) and is_rendered(text)]
        if own or (not prompts and all(map(is_rendered, answers))):
            yield guess_of("rendered", columns, *own[:1])


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    return "texts with a template's markers, used as they are"


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    values, columns = row.values, row_format.columns
    names = columns["chosen"], columns["rejected"]
    wanted = (columns["prompt"], *names) if "prompt" in columns else names
    texts: dict[str, Any] = {name: values.get(name) for name in wanted}
    faults = [*media(values), *missing(values, wanted)] + [
        f'"{name}" must be text, found {type(text).__name__}'
        for name, text in texts.items()
        if text is not None and not isinstance(text, str)
    ]
    if faults:
        raise FaultyRowError(faults)
    chosen, rejected = (texts[name] for name in names)
    prompt = texts[wanted[0]] if "prompt" in columns else rendered_prompt(chosen, rejected)
    if not is_rendered(prompt):
        raise FaultyRowError([f'"{wanted[0]}" begins with no marker of a template, as others do'])
    if row_format.repeats_prompt or "prompt" not in columns:
        if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
            report.leave_out(PROMPT_NOT_REPEATED)
            return []
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if chosen == rejected:
        faults.append(f'"{names[0]}" and "{names[1]}" are the same')
    answers = zip(names, (chosen, rejected), strict=True)
    faults += [f'"{name}" is empty' for name, answer in answers if is_blank(answer)]
    if faults:
        raise FaultyRowError(faults)
    return [pair_of_texts(row, row_format, prompt, chosen, rejected)._replace(raw=True)]


FORMAT = FormatSpec(("rendered",), _guess, _describe, _read, texts_alone=True)
