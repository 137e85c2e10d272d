"""One row to its pairs, or several rows to theirs, by the shape of their source.

A fault is a Problem, a row that makes no pair by its nature a counted drop; nothing is cast.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from orpo_mlx.data.pairs.columns import number, truth
from orpo_mlx.data.pairs.fields import (
    answer_of,
    conversation_of,
    labels_of,
    media,
    missing,
    prompt_of,
    system_of,
    tools_in,
    unpacked,
)
from orpo_mlx.data.pairs.messages import (
    FaultyRowError,
    Message,
    PreferencePair,
    as_messages,
    messages_of,
    parting_fault,
    shared_start,
)
from orpo_mlx.data.pairs.pairing import (
    ALONE,
    SAME,
    Single,
    best_pairs,
    first_is_better,
    good_and_bad,
    listed_answers,
    neighbours,
    no_number,
)
from orpo_mlx.data.pairs.recognize import other_shape
from orpo_mlx.data.pairs.row_format import Shape
from orpo_mlx.data.pairs.turns import is_rendered, rendered_prompt
from orpo_mlx.data.reading.sources import Problem, Row

STATUS_TIE = 'pair whose "status" is tie'
NOT_WHOLE = "pair whose answers do not repeat the prompt, as the others do"


def read_row(
    row: Row, shape: Shape, problems: list[Problem], drops: Counter[str]
) -> list[PreferencePair]:
    """The pairs of a row that stands alone; its faults go to `problems`."""
    try:
        return _READERS[shape.name](row, shape, drops)
    except FaultyRowError as error:
        _refuse(row, shape, error, problems, drops)
        return []


def pair_rows(
    rows: Iterable[Row], shape: Shape, problems: list[Problem], drops: Counter[str]
) -> Iterator[PreferencePair]:
    """The pairs of rows of a grouped shape, each of which holds one answer."""
    singles = _singles(rows, shape, problems, drops)
    if shape.name == "kto":
        for good, bad in good_and_bad(singles, drops):
            yield from _of_singles(good, bad, shape, problems, drops)
        return
    for group in neighbours(singles):
        if len(group) == 1:
            drops[ALONE] += 1
            continue
        scores = [single.score for single in group]
        for better, worse in best_pairs(
            scores, shape.higher_is_better, shape.reading.min_margin, drops
        ):
            yield from _of_singles(group[better], group[worse], shape, problems, drops)


def _refuse(
    row: Row, shape: Shape, error: FaultyRowError, problems: list[Problem], drops: Counter[str]
) -> None:
    if other := other_shape(row.values, shape):
        problems.append(Problem(row.place, f"row of another shape ({other})"))
    else:
        problems.extend(Problem(row.place, fault) for fault in error.faults)


def _beside(row: Row, shape: Shape, drops: Counter[str]) -> list[PreferencePair]:
    """A prompt beside two answers."""
    values, columns = row.values, shape.columns
    if shape.ties and values.get("status") == "tie":
        drops[STATUS_TIE] += 1
        return []
    if "both" in columns:
        values = unpacked(values, columns["both"])
    names = columns.get("chosen", "chosen"), columns.get("rejected", "rejected")
    texts: list[Any] = [values.get(name) for name in (columns["prompt"], *names)]
    plain = not (shape.turns or shape.whole) and shape.extras.isdisjoint(values)
    if plain and _make_pair(*texts):
        return [_of_texts(row, shape, *texts)]
    faults = [*media(values), *missing(values, (columns["prompt"], *names))]
    if shape.whole and all(isinstance(text, str) for text in texts):
        prompt, *answers = texts
        if not all(answer.startswith(prompt) for answer in answers):
            drops[NOT_WHOLE] += 1
            return []
        texts = [prompt, *(answer[len(prompt) :].lstrip() for answer in answers)]
    prompt = prompt_of(values, shape, faults)
    chosen, rejected = (
        [] if said is None else answer_of(name, said, faults)
        for name, said in zip(names, texts[1:], strict=True)
    )
    tools = tools_in(values, shape, faults)
    if faults:
        raise FaultyRowError(faults)
    return [_joined(row.place, prompt, chosen, rejected, names, tools, labels_of(values, shape))]


def _implicit(row: Row, shape: Shape, drops: Counter[str]) -> list[PreferencePair]:
    """Two conversations that begin alike."""
    values, columns = row.values, shape.columns
    names = columns["chosen"], columns["rejected"]
    faults = [*media(values), *missing(values, names)]
    chosen, rejected = (
        conversation_of(name, values.get(name), faults) if values.get(name) is not None else []
        for name in names
    )
    prompt = values.get(columns.get("copy", ""))
    if isinstance(prompt, list) and not faults:
        start = messages_of(columns["copy"], prompt, "user", faults)
        if chosen[: len(start)] != start or rejected[: len(start)] != start:
            faults.append(f'"{names[0]}" and "{names[1]}" do not begin with "{columns["copy"]}"')
    tools = tools_in(values, shape, faults)
    if faults:
        raise FaultyRowError(faults)
    system = system_of(values, shape, chosen)
    chosen, rejected = [*system, *chosen], [*system, *rejected]
    return [_joined(row.place, None, chosen, rejected, names, tools, labels_of(values, shape))]


def _rendered(row: Row, shape: Shape, drops: Counter[str]) -> list[PreferencePair]:
    """Texts with a template's markers, which the model reads as they stand."""
    values, columns = row.values, shape.columns
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
    if shape.whole or "prompt" not in columns:
        if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
            drops[NOT_WHOLE] += 1
            return []
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if chosen == rejected:
        faults.append(f'"{names[0]}" and "{names[1]}" are the same')
    answers = zip(names, (chosen, rejected), strict=True)
    faults += [f'"{name}" is empty' for name, answer in answers if not answer.strip()]
    if faults:
        raise FaultyRowError(faults)
    return [_of_texts(row, shape, prompt, chosen, rejected)._replace(raw=True)]


def _either(row: Row, shape: Shape, drops: Counter[str]) -> list[PreferencePair]:
    """Two answers and a verdict."""
    values, columns = row.values, shape.columns
    names = columns["first"], columns["second"]
    if faults := [*media(values), *missing(values, names)]:
        raise FaultyRowError(faults)
    first = first_is_better(values, shape, drops)
    if first is None:
        return []
    names = names if first else names[::-1]
    return _chosen_from(row, shape, names, drops, values[names[0]], values[names[1]])


def _ranked(row: Row, shape: Shape, drops: Counter[str]) -> list[PreferencePair]:
    """Several answers with a score or rank each."""
    values, reading = row.values, shape.reading
    if faults := [*media(values), *missing(values, (shape.columns["answers"],))]:
        raise FaultyRowError(faults)
    answers = listed_answers(values, shape, drops)
    if len(answers) < 2:
        drops["row with fewer than two answers that can be compared"] += 1
        return []
    scores = [answer.score for answer in answers]
    pairs = best_pairs(scores, shape.higher_is_better, reading.min_margin, drops)
    name = shape.columns["answers"]
    return [
        pair
        for better, worse in pairs
        for pair in _chosen_from(
            row, shape, (name, name), drops, answers[better].said, answers[worse].said
        )
    ]


def _chosen_from(
    row: Row, shape: Shape, names: tuple[str, str], drops: Counter[str], chosen: Any, rejected: Any
) -> list[PreferencePair]:
    """The pair of two answers of a row; none, counted, if they are the same."""
    faults: list[str] = []
    alone = "prompt" not in shape.columns
    read = conversation_of if alone else answer_of
    first, second = (
        read(name, value, faults) for name, value in zip(names, (chosen, rejected), strict=True)
    )
    prompt = None if alone else prompt_of(row.values, shape, faults)
    tools = tools_in(row.values, shape, faults)
    if faults:
        raise FaultyRowError(faults)
    if first == second:
        drops[SAME] += 1
        return []
    labels = labels_of(row.values, shape)
    return [_joined(row.place, prompt, first, second, names, tools, labels)]


_READERS: dict[str, Callable[[Row, Shape, Counter[str]], list[PreferencePair]]] = {
    **dict.fromkeys(("prompt", "orca", "alpaca", "sharegpt"), _beside),
    "implicit": _implicit,
    "hh": _implicit,
    "rendered": _rendered,
    "ab": _either,
    "ranked": _ranked,
}


def _singles(
    rows: Iterable[Row], shape: Shape, problems: list[Problem], drops: Counter[str]
) -> Iterator[Single]:
    """What rows of one answer hold."""
    for row in rows:
        try:
            if single := _single(row, shape, drops):
                yield single
        except FaultyRowError as error:
            _refuse(row, shape, error, problems, drops)


def _single(row: Row, shape: Shape, drops: Counter[str]) -> Single | None:
    values, columns = row.values, shape.columns
    mark = columns.get("label") or columns["score"]
    alone = "prompt" not in columns
    needed = (columns["completion"], mark, *(() if alone else (columns["prompt"],)))
    faults = [*media(values), *missing(values, needed)]
    if faults:
        raise FaultyRowError(faults)
    if shape.ties and values.get("status") == "tie":
        drops[STATUS_TIE] += 1
        return None
    score = truth(values[mark]) if "label" in columns else number(values[mark])
    if score is None and "label" in columns:
        faults.append(f'"{mark}" must be true or false (or 1 or 0), found {values[mark]!r}')
    read = conversation_of if alone else answer_of
    said = read(columns["completion"], values[columns["completion"]], faults)
    prompt = None if alone else prompt_of(values, shape, faults)
    tools = tools_in(values, shape, faults)
    if alone and not faults and (said[-1]["role"] != "assistant" or len(said) < 2):
        faults.append(f'"{columns["completion"]}" does not end with an answer to a prompt')
    if faults:
        raise FaultyRowError(faults)
    if score is None:
        drops[no_number(mark)] += 1
        return None
    if prompt is None:
        prompt, said = [*system_of(values, shape, said), *said[:-1]], said[-1:]
    return Single(row.place, prompt, said, float(score), tools, labels_of(values, shape))


def _of_singles(
    good: Single, bad: Single, shape: Shape, problems: list[Problem], drops: Counter[str]
) -> Iterator[PreferencePair]:
    """The pair of two rows; its place names both."""
    if good.answer == bad.answer:
        drops[SAME] += 1
        return
    number = re.search(r"\d+$", bad.place)
    place = f"{good.place}+{number[0] if number else bad.place}"
    labels = {k: v for k, v in good.labels.items() if bad.labels.get(k) == v}
    names = (shape.columns["completion"],) * 2
    try:
        yield _joined(place, good.prompt, good.answer, bad.answer, names, good.tools, labels)
    except FaultyRowError as error:
        problems.extend(Problem(good.place, fault) for fault in error.faults)


def _joined(
    place: str,
    prompt: str | list[Message] | None,
    chosen: list[Message],
    rejected: list[Message],
    names: tuple[str, str],
    tools: list[Any] | None,
    labels: dict[str, str],
) -> PreferencePair:
    """The pair of two lists of messages; what both begin with belongs to the prompt."""
    shared = shared_start(chosen, rejected)
    if fault := parting_fault(names, chosen[shared:], rejected[shared:]):
        raise FaultyRowError([fault])
    if prompt is None:
        prompt = chosen[:shared]
    elif shared:
        prompt = [*as_messages(prompt), *chosen[:shared]]
    if not prompt:
        raise FaultyRowError([f'"{names[0]}" and "{names[1]}" begin with no prompt in common'])
    extra = len(chosen) + len(rejected) - 2 * (shared + 1)
    return PreferencePair(prompt, chosen[shared], rejected[shared], place, tools, extra, labels)


def _of_texts(row: Row, shape: Shape, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    good, bad = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return PreferencePair(prompt, good, bad, row.place, None, 0, labels_of(row.values, shape))


def _make_pair(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Whether three values are texts that make a pair as they stand."""
    if not (type(prompt) is type(chosen) is type(rejected) is str) or chosen == rejected:
        return False
    blank = not prompt or not chosen or not rejected
    return not (blank or prompt.isspace() or chosen.isspace() or rejected.isspace())
