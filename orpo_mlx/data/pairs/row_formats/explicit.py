"""A prompt and two answers, a column each: one format under the names of those who write it."""

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import (
    PAIR_COLUMNS,
    guess_of,
    nested_messages,
    pair_columns,
    prompt_columns,
)
from orpo_mlx.data.pairs.fields import (
    PROMPT_NOT_REPEATED,
    STATUS_TIE,
    answer_of,
    join_pair,
    labels_of,
    media,
    missing,
    pair_of_texts,
    prompt_of,
    tools_in,
    value_of,
)
from orpo_mlx.data.pairs.format_names import RowFormatName
from orpo_mlx.data.pairs.message_parts.content import is_blank
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

# How rows are read, and what they lack is named, where no format fits.
USUAL = Guess("prompt", (("chosen", "chosen"), ("rejected", "rejected"), ("prompt", "prompt")))


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    if listed := _list_of_two(values, mapped):
        yield guess_of("alpaca", listed)
    for columns, answers in pair_columns(values, mapped):
        if all(isinstance(v, str | list | dict) for v in answers):
            for prompt in prompt_columns(values, mapped, answers=columns.values()):
                own_name = _name_of(prompt["prompt"], values, mapped)
                if own_name == "alpaca" and tuple(columns.values()) == PAIR_COLUMNS[1]:
                    own_name = "orca"
                yield guess_of(own_name, columns, prompt)


def _list_of_two(values: Values, mapped: Mapped) -> dict[str, str]:
    """LLaMA-Factory's older rows: `output` holds the better and the worse answer."""
    output = values.get("output")
    two = isinstance(output, list) and len(output) == 2 and all(isinstance(o, str) for o in output)
    if not two or not isinstance(values.get("instruction"), str):
        return {}
    return {"prompt": mapped.get("prompt", "instruction"), "both": "output"}


def _name_of(prompt: str, values: Values, mapped: Mapped) -> RowFormatName:
    """The name that goes with the column of the prompt."""
    if "prompt" in mapped or prompt == "prompt":
        return "prompt"
    messages = nested_messages(values[prompt])
    if isinstance(messages, list):
        return "sharegpt" if "from" in messages[0] else "prompt"
    return "alpaca" if prompt == "instruction" else "orca"


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    if row_format.name == "sharegpt":
        return "conversations in ShareGPT form"
    columns = row_format.columns
    messages = any(isinstance(value_of(row, columns, "prompt"), list) for row in values)
    answers = any(not isinstance(value_of(row, columns, "chosen"), str | None) for row in values)
    return f"{'conversational' if messages or answers else 'texts'}, explicit prompt"


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    values, columns = row.values, row_format.columns
    if row_format.has_ties and values.get("status") == "tie":
        report.leave_out(STATUS_TIE)
        return []
    if "both" in columns:
        values = _unpack_both(values, columns["both"])
    names = columns.get("chosen", "chosen"), columns.get("rejected", "rejected")
    texts: list[Any] = [values.get(name) for name in (columns["prompt"], *names)]
    if (
        not (row_format.has_turns or row_format.repeats_prompt)
        and row_format.extras.isdisjoint(values)
        and _are_plain(*texts)
    ):
        return [pair_of_texts(row, row_format, *texts)]
    faults = [*media(values), *missing(values, (columns["prompt"], *names))]
    if row_format.repeats_prompt and all(isinstance(text, str) for text in texts):
        prompt, *answers = texts
        if not all(answer.startswith(prompt) for answer in answers):
            report.leave_out(PROMPT_NOT_REPEATED)
            return []
        texts = [prompt, *(answer[len(prompt) :].lstrip() for answer in answers)]
    prompt = prompt_of(values, row_format, faults)
    chosen, rejected = (
        [] if answer is None else answer_of(name, answer, faults)
        for name, answer in zip(names, texts[1:], strict=True)
    )
    tools = tools_in(values, row_format, faults, dict(zip(names, texts[1:], strict=True)))
    if faults:
        raise FaultyRowError(faults)
    labels = labels_of(values, row_format)
    return [join_pair(row.location, prompt, chosen, rejected, names, tools, labels)]


def _unpack_both(values: Values, column: str) -> dict[str, Any]:
    """A row whose list of two answers is put into columns of their own."""
    both = values.get(column)
    if not isinstance(both, list) or len(both) != 2:
        raise FaultyRowError([f'"{column}" must be a list of the better and the worse answer'])
    return {**values, "chosen": both[0], "rejected": both[1]}


def _are_plain(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Whether three values are texts that make a pair as they are."""
    if not (type(prompt) is type(chosen) is type(rejected) is str) or chosen == rejected:
        return False
    return not (not prompt or prompt.isspace() or is_blank(chosen) or is_blank(rejected))


FORMAT = FormatSpec(("prompt", "orca", "alpaca", "sharegpt"), _guess, _describe, _read)
