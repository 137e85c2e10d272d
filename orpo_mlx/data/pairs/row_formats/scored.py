"""One answer and its score a row; the rows of one prompt are next to each other."""

from collections.abc import Iterable, Iterator, Sequence

from orpo_mlx.data.pairs.columns import (
    first_column,
    guess_of,
    has_content,
    number,
    prompt_columns,
)
from orpo_mlx.data.pairs.messages import SingleAnswer
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.scores import SCORE_OPTIONS, best_pairs, describe_scores
from orpo_mlx.data.pairs.single_answers import COMPLETIONS, read_answer
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

SCORES = ("score", "rating", "reward", "rank", "overall_score", "helpfulness", "average_rating")
ALONE = "answer without another to the same prompt in the rows next to it"


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    answer = first_column(values, mapped, "completion", COMPLETIONS, has_content)
    score = answer and first_column(
        values, mapped, "score", SCORES, lambda v: number(v) is not None or v == "N/A"
    )
    for prompt in prompt_columns(values, mapped) if score else ():
        if prompt["prompt"] != answer:
            yield guess_of("scored", {"completion": answer, "score": score}, prompt)


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    columns = row_format.columns
    answers = f'"{columns["completion"]}" of consecutive rows'
    return describe_scores(row_format, answers, columns["score"])


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[SingleAnswer]:
    score = number(row.values.get(row_format.columns["score"]))
    return read_answer(row, row_format, "score", score, report)


def _pair_up(
    answers: Iterable[SingleAnswer], row_format: RowFormat, report: ReadReport
) -> Iterator[tuple[SingleAnswer, SingleAnswer]]:
    for group in _group_by_prompt(answers):
        if len(group) == 1:
            report.leave_out(ALONE)
            continue
        scores = [answer.score for answer in group]
        higher, min_margin = row_format.higher_is_better, row_format.reading.min_margin
        for better, worse in best_pairs(scores, higher, min_margin, report):
            yield group[better], group[worse]


def _group_by_prompt(answers: Iterable[SingleAnswer]) -> Iterator[list[SingleAnswer]]:
    """Answers to the same prompt that follow one another."""
    group: list[SingleAnswer] = []
    for answer in answers:
        if group and (answer.prompt, answer.tools) != (group[0].prompt, group[0].tools):
            yield group
            group = []
        group.append(answer)
    if group:
        yield group


FORMAT = FormatSpec(("scored",), _guess, _describe, _read, _pair_up, SCORE_OPTIONS)
