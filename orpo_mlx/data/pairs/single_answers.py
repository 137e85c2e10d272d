"""Rows that hold one answer each, and the pair of two of them."""

import re

from orpo_mlx.data.pairs.fields import (
    SAME,
    STATUS_TIE,
    answer_of,
    conversation_of,
    join_pair,
    labels_of,
    media,
    missing,
    no_number,
    prompt_of,
    system_of,
    tools_in,
)
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair, SingleAnswer
from orpo_mlx.data.pairs.row_format import RowFormat
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

COMPLETIONS = ("completion", "response", "output", "answer")


def read_answer(
    row: Row,
    row_format: RowFormat,
    role: str,  # of the column that says how good the answer is
    score: float | None,  # what that column says; None: nothing
    report: ReadReport,
    score_fault: str = "",
) -> list[SingleAnswer]:
    """The answer of a row; none, counted, if it has no score."""
    values, columns = row.values, row_format.columns
    name, alone = columns["completion"], "prompt" not in columns
    prompts = () if alone else (columns["prompt"],)
    needed = dict.fromkeys((name, columns[role], *prompts))
    if faults := [*media(values), *missing(values, needed)]:
        raise FaultyRowError(faults)
    if row_format.has_ties and values.get("status") == "tie":
        report.leave_out(STATUS_TIE)
        return []
    if score_fault:
        faults.append(score_fault)
    answer = (conversation_of if alone else answer_of)(name, values[name], faults)
    prompt = None if alone else prompt_of(values, row_format, faults)
    tools = tools_in(values, row_format, faults)
    if alone and not faults and (answer[-1]["role"] != "assistant" or len(answer) < 2):
        faults.append(f'"{name}" does not end with an answer to a prompt')
    if faults:
        raise FaultyRowError(faults)
    if score is None:
        report.leave_out(no_number(columns[role]))
        return []
    if prompt is None:
        prompt, answer = [*system_of(values, row_format, answer), *answer[:-1]], answer[-1:]
    return [SingleAnswer(row.location, prompt, answer, score, tools, labels_of(values, row_format))]


def pair_of_answers(
    better: SingleAnswer, worse: SingleAnswer, row_format: RowFormat, report: ReadReport
) -> list[PreferencePair]:
    """The pair of two rows, whose location names both; none, counted, if they are the same."""
    if better.answer == worse.answer:
        report.leave_out(SAME)
        return []
    if better.weight != worse.weight:
        weights = f"{better.weight:g} and {worse.weight:g}"
        raise FaultyRowError([f"makes a pair with {worse.location}: weights {weights}, not one"])
    line = re.search(r"\d+$", worse.location)
    location = f"{better.location}+{line[0] if line else worse.location}"
    labels = {k: v for k, v in better.labels.items() if worse.labels.get(k) == v}
    names = (row_format.columns["completion"],) * 2
    pair = join_pair(
        location, better.prompt, better.answer, worse.answer, names, better.tools, labels
    )
    return [pair._replace(weight=better.weight)]
