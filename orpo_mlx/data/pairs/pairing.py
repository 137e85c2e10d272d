"""Which two of several answers make a pair: by score or rank, by verdict, by label.

What makes none is counted by reason. Knows nothing of files.
"""

import json
import pickle
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.columns import VERDICTS, number
from orpo_mlx.data.pairs.messages import FaultyRowError, Message
from orpo_mlx.data.pairs.row_format import Shape

NO_TEXT = "answer without text"
TIED = "answers that are equally good (a tie)"
SAME = "two answers that are the same text"
MARGIN = "answers less than --min-margin apart"
ALONE = "answer without another to the same prompt in the rows beside it"
NO_BAD = "good answer without a bad one to the same prompt"
NO_GOOD = "bad answer without a good one to the same prompt"


class Answer(NamedTuple):
    """One answer to a prompt, as the row holds it, and how good it is."""

    said: Any  # text or messages
    score: float


class Single(NamedTuple):
    """A row that holds one answer."""

    place: str
    prompt: str | list[Message]
    answer: list[Message]
    score: float  # of a label: 1 good, 0 bad
    tools: list[Any] | None
    labels: dict[str, str]


def best_pairs(
    scores: Sequence[float], higher_is_better: bool, min_margin: float | None, drops: Counter[str]
) -> list[tuple[int, int]]:
    """Indices of the better and the worse answer of each pair.

    The best and the worst, or, with `min_margin`, every two that are at least so far apart.
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i], reverse=higher_is_better)
    if min_margin is None:
        if scores[order[0]] == scores[order[-1]]:
            drops[TIED] += 1
            return []
        worst = next(i for i in order if scores[i] == scores[order[-1]])
        return [(order[0], worst)]
    pairs = []
    for better, worse in combinations(order, 2):
        apart = abs(scores[better] - scores[worse])
        if apart and apart >= min_margin:
            pairs.append((better, worse))
        else:
            drops[MARGIN if apart else TIED] += 1
    return pairs


def listed_answers(values: Mapping[str, Any], shape: Shape, drops: Counter[str]) -> list[Answer]:
    """The answers of a row that holds several, those without text or score left out."""
    columns = shape.columns
    score_name = columns.get("scores") or columns["score"]
    answers = []
    for said, score in _said_and_score(values, columns):
        if said is not None and not isinstance(said, str | list | dict):
            fault = f'an answer in "{columns["answers"]}" must be text, found {type(said).__name__}'
            raise FaultyRowError([fault])
        value = _mean_rating(score) if isinstance(score, dict) else number(score)
        if not said or (isinstance(said, str) and said.isspace()):
            drops[NO_TEXT] += 1
        elif value is None:
            drops[no_number(score_name)] += 1
        else:
            answers.append(Answer(said, value))
    return answers


def _said_and_score(values: Mapping[str, Any], columns: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """The answers of a row with their scores, as they stand there."""
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


def no_number(column: str) -> str:
    """The reason why an answer without a score is left out."""
    return f'answer without a number in "{column}"'


def first_is_better(values: Mapping[str, Any], shape: Shape, drops: Counter[str]) -> bool | None:
    """Which of two answers the verdict prefers; None, counted, for neither."""
    column = shape.columns["verdict"]
    verdict = values.get(column)
    way = VERDICTS.get(column, "name")
    if verdict is None:
        raise FaultyRowError([f'column "{column}" is null'])
    if way == "name":
        return _named(verdict, column, shape, drops)
    found = number(verdict)
    allowed = {"first": (0, 1), "index": (0, 1)}.get(way)
    if found is None or (allowed and found not in allowed):
        wanted = " or ".join(map(str, allowed)) if allowed else "a number"
        raise FaultyRowError([f'"{column}" must be {wanted}, found {verdict!r}'])
    if way == "strength":
        if found and abs(found) < (shape.reading.min_margin or 0):
            drops[MARGIN] += 1
            return None
        if not found:
            drops[TIED] += 1
            return None
        return found < 0
    return found == (1 if way == "first" else 0)


def neighbours(singles: Iterable[Single]) -> Iterator[list[Single]]:
    """Rows that stand together and answer the same prompt."""
    group: list[Single] = []
    for single in singles:
        if group and (single.prompt, single.tools) != (group[0].prompt, group[0].tools):
            yield group
            group = []
        group.append(single)
    if group:
        yield group


def good_and_bad(singles: Iterable[Single], drops: Counter[str]) -> Iterator[tuple[Single, Single]]:
    """Each good answer with a bad one of the same prompt, as they come; the rest is counted."""
    waiting: dict[tuple[bytes, float], deque[bytes]] = {}
    for single in singles:
        key = _prompt_key(single)
        if others := waiting.get((key, 1 - single.score)):
            other: Single = pickle.loads(zlib.decompress(others.popleft()))
            if not others:
                del waiting[key, 1 - single.score]
            yield (single, other) if single.score else (other, single)
        else:
            # Packed: in a file sorted by label half of all answers wait.
            packed = zlib.compress(pickle.dumps(single), level=1)
            waiting.setdefault((key, single.score), deque()).append(packed)
    for (_, score), left in waiting.items():
        drops[NO_BAD if score else NO_GOOD] += len(left)


def _prompt_key(single: Single) -> bytes:
    said = json.dumps([single.prompt, single.tools], sort_keys=True)
    return blake2b(said.encode(), digest_size=16).digest()


def _mean_rating(ratings: Mapping[str, Any]) -> float | None:
    """The mean of an answer's ratings by several aspects; None if one is no number."""
    found = [number(r.get("Rating") if isinstance(r, dict) else r) for r in ratings.values()]
    numbers = [n for n in found if n is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(found) else None


def _named(verdict: Any, column: str, shape: Shape, drops: Counter[str]) -> bool | None:
    """Whether a verdict in words names the first answer."""
    said = str(verdict).strip().lower()
    first, second = (shape.columns[role].lower() for role in ("first", "second"))
    if said in ("a", "1", "model_a", "first", first):
        return True
    if said in ("b", "2", "model_b", "second", second):
        return False
    if said.startswith("tie") or said in ("both", "neither", "same"):
        drops[TIED] += 1
        return None
    raise FaultyRowError(
        [
            f'"{column}" names no answer: {verdict!r} (allowed: a, b, 1, 2, model_a, model_b, '
            f'"{first}", "{second}", tie)'
        ]
    )
