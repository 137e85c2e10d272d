"""A list of answers with a score or a rank each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.columns import first_column, guess_of, number, prompt_columns
from orpo_mlx.data.pairs.fields import media, missing, no_number, pair_of_two
from orpo_mlx.data.pairs.message_parts.content import is_blank
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.scores import SCORE_OPTIONS, best_pairs, describe_scores
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

ANSWER_LISTS = (
    "completions",
    "answers",
    "responses",
    "candidates",
    "candidates_completions",
    "generations",
    "all_generated_responses",
    "outputs",
)
SCORE_LISTS = ("ranks", "ratings", "scores", "rank", "rating", "score", "rewards", "all_rm_scores")
ANSWER_KEYS = ("response", "answer", "completion", "text", "content", "output", "generation")
SCORE_KEYS = ("rank", "overall_score", "score", "rating", "reward", "helpfulness", "annotations")
NO_TEXT = "answer without text"
TOO_FEW = "row with fewer than two answers that can be compared"


class ScoredAnswer(NamedTuple):
    """One answer to a prompt, as the row holds it, and how good it is."""

    answer: Any  # text or messages
    score: float


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    for answers in (mapped["answers"],) if "answers" in mapped else ANSWER_LISTS:
        listed = values.get(answers)
        if not isinstance(listed, list) or not listed:
            continue
        if scores := _score_columns(listed, values, mapped):
            for prompt in prompt_columns(values, mapped):
                yield guess_of("ranked", {"answers": answers}, scores, prompt)
            return


def _score_columns(answers: list[Any], values: Values, mapped: Mapped) -> dict[str, str]:
    """The column of the scores, or the keys of text and score in each answer; none if one lacks."""
    if all(isinstance(a, str) for a in answers):
        scores = first_column(
            values,
            mapped,
            "scores",
            SCORE_LISTS,
            lambda v: isinstance(v, list) and len(v) == len(answers),
        )
        return {"scores": scores} if scores else {}
    if not all(isinstance(a, dict) for a in answers):
        return {}
    known = {k: v for a in answers for k, v in a.items() if v is not None}
    keys = {
        role: first_column(known, mapped, role, names)
        for role, names in (("text", ANSWER_KEYS), ("score", SCORE_KEYS))
    }
    return keys if all(keys.values()) else {}


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    columns = row_format.columns
    score = columns.get("scores") or columns["score"]
    return describe_scores(row_format, f'"{columns["answers"]}"', score)


def _read(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    values, column = row.values, row_format.columns["answers"]
    if faults := [*media(values), *missing(values, (column,))]:
        raise FaultyRowError(faults)
    answers = _listed_answers(values, row_format, report)
    if len(answers) < 2:
        report.leave_out(TOO_FEW)
        return []
    scores = [answer.score for answer in answers]
    pairs = best_pairs(scores, row_format.higher_is_better, row_format.reading.min_margin, report)
    return [
        pair
        for better, worse in pairs
        for pair in pair_of_two(
            row, row_format, (column, column), report, answers[better].answer, answers[worse].answer
        )
    ]


def _listed_answers(
    values: Values, row_format: RowFormat, report: ReadReport
) -> list[ScoredAnswer]:
    """The answers of a row, those without text or score left out."""
    columns = row_format.columns
    score_name = columns.get("scores") or columns["score"]
    answers = []
    for answer, score in _answers_and_scores(values, columns):
        if answer is not None and not isinstance(answer, str | list | dict):
            kind = type(answer).__name__
            fault = f'an answer in "{columns["answers"]}" must be text, found {kind}'
            raise FaultyRowError([fault])
        value = _mean_rating(score) if isinstance(score, dict) else number(score)
        if not answer or (isinstance(answer, str) and is_blank(answer)):
            report.leave_out(NO_TEXT)
        elif value is None:
            report.leave_out(no_number(score_name))
        else:
            answers.append(ScoredAnswer(answer, value))
    return answers


def _answers_and_scores(values: Values, columns: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """The answers of a row with their scores, as they are there."""
    name = columns["answers"]
    listed = values.get(name)
    if "scores" not in columns:
        if not isinstance(listed, list) or not all(isinstance(a, dict) for a in listed):
            raise FaultyRowError([f'"{name}" must be a list of answers with scores'])
        return [(a.get(columns["text"]), a.get(columns["score"])) for a in listed]
    scores = values.get(columns["scores"])
    lists = isinstance(listed, list) and isinstance(scores, list)
    if not lists or len(listed or ()) != len(scores or ()):
        raise FaultyRowError([f'"{name}" and "{columns["scores"]}" must be lists of one length'])
    return list(zip(listed or (), scores or (), strict=True))


def _mean_rating(ratings: Mapping[str, Any]) -> float | None:
    """The mean of an answer's ratings by several aspects; None if one is not a number."""
    values = [number(r.get("Rating") if isinstance(r, dict) else r) for r in ratings.values()]
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


FORMAT = FormatSpec(("ranked",), _guess, _describe, _read, options=SCORE_OPTIONS, is_unsure=True)
