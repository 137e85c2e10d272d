"""What the columns of a row can mean: every reading of it that its names and values allow.

A guess is a shape's name and the columns that it takes; which of several holds is for shapes.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.messages import plain
from orpo_mlx.data.pairs.turns import has_turns, is_rendered

# What --columns can name.
ROLES = (
    "prompt", "chosen", "rejected", "system", "tools", "input", "history", "completion", "label",
    "score", "answers", "scores", "first", "second", "verdict",
)  # fmt: skip
PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
TEXT_PROMPTS = ("question", "instruction", "input", "query")
CONVERSATIONS = ("conversations", "conversation", "messages", "context")
COMPLETIONS = ("completion", "response", "output", "answer")
LABELS = ("label", "kto_tag")
SCORES = ("score", "rating", "reward", "rank", "overall_score", "helpfulness", "average_rating")
# Two answers, and the verdict on them with the way it is written.
TWO_ANSWERS = (
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


class Guess(NamedTuple):
    """One reading of a row: a shape and its columns, as (role, column)."""

    name: str
    columns: tuple[tuple[str, str], ...]


def guesses(values: Mapping[str, Any], mapped: Mapping[str, str]) -> list[Guess]:
    """Every reading of a row, the surer first; `mapped` says what columns are called."""
    ways = (_pairs, _unpaired, _two_answers, _ranked, _scored)
    return [
        Guess(name, tuple(columns.items())) for way in ways for name, columns in way(values, mapped)
    ]


def number(value: Any) -> float | None:
    """A number, written as one or as text; None for what is neither ("N/A")."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if found - found == 0 else None  # no NaN, no infinity


def truth(value: Any) -> bool | None:
    """True or false, as such, as 1 or 0, or in words; None for what is neither."""
    said = str(value).lower() if isinstance(value, bool | int | str) else ""
    return {"true": True, "1": True, "false": False, "0": False}.get(said)


_Way = Iterator[tuple[str, dict[str, str]]]


def _pairs(values: Mapping[str, Any], mapped: Mapping[str, str]) -> _Way:
    """Chosen and rejected stand in columns of their own."""
    listed = _list_of_two(values, mapped)
    if listed:
        yield "alpaca", listed
    for names in _named(mapped, ("chosen", "rejected"), PAIRS):
        found = [values[name] for name in names if values.get(name) is not None]
        if not found or not all(name in values for name in names):
            continue
        pair = dict(zip(("chosen", "rejected"), names, strict=True))
        prompts = list(_prompts(values, mapped))
        copy = _copied(prompts)
        if all(isinstance(v, str) and has_turns(v) for v in found):
            yield "hh", pair | copy
        if (rendered := _rendered(found, prompts, values)) is not None:
            yield "rendered", pair | rendered
        if all(_begins_with_prompt(v) for v in found):
            yield "implicit", pair | copy
        elif not prompts and all(_is_conversation(v) and len(v) > 2 for v in found):
            yield "implicit", pair  # the assistant greets first
        if all(isinstance(v, str | list | dict) for v in found):
            for name, prompt in prompts:
                yield _called(name, names), pair | prompt


def _unpaired(values: Mapping[str, Any], mapped: Mapping[str, str]) -> _Way:
    """One answer and whether it is good."""
    label = _first(values, mapped, "label", LABELS, lambda v: truth(v) is not None)
    if not label:
        return
    answer = _first(values, mapped, "completion", COMPLETIONS, _says_something)
    prompts = list(_prompts(values, mapped))
    if not answer:
        answer = next((c for c in CONVERSATIONS if _is_conversation(values.get(c))), "")
        prompts = []
        if not answer:
            return
    columns = {"completion": answer, "label": label}
    if _begins_with_prompt(values[answer]):
        yield "kto", columns | _copied(prompts)
        return
    for _, prompt in prompts:
        yield "kto", columns | prompt


def _two_answers(values: Mapping[str, Any], mapped: Mapping[str, str]) -> _Way:
    """Two answers and a verdict."""
    verdict = _first(
        values, mapped, "verdict", VERDICTS, lambda v: isinstance(v, int | float | str)
    )
    if not verdict:
        return
    for names in _named(mapped, ("first", "second"), TWO_ANSWERS):
        if not all(_says_something(values.get(name)) for name in names):
            continue
        columns = dict(zip(("first", "second"), names, strict=True)) | {"verdict": verdict}
        prompts = list(_prompts(values, mapped, ("history", "context")))
        if all(_begins_with_prompt(values[name]) for name in names):
            yield "ab", columns | _copied(prompts)
            return
        for _, prompt in prompts:
            yield "ab", columns | prompt
        return


def _ranked(values: Mapping[str, Any], mapped: Mapping[str, str]) -> _Way:
    """A list of answers with a score or a rank each."""
    prompts = list(_prompts(values, mapped))
    if not prompts:
        return
    for answers in (mapped["answers"],) if "answers" in mapped else ANSWER_LISTS:
        listed = values.get(answers)
        if not isinstance(listed, list) or not listed:
            continue
        if all(isinstance(a, str) for a in listed):
            scores = _first(
                values,
                mapped,
                "scores",
                SCORE_LISTS,
                partial(_is_list_of, len(listed)),
            )
            found = {"scores": scores} if scores else {}
        elif all(isinstance(a, dict) for a in listed):
            known = {k: v for a in listed for k, v in a.items() if v is not None}
            keys = (("text", ANSWER_KEYS), ("score", SCORE_KEYS))
            found = {role: _first(known, mapped, role, names, _any) for role, names in keys}
            found = found if all(found.values()) else {}
        else:
            continue
        for _, prompt in prompts if found else ():
            yield "ranked", {"answers": answers} | found | prompt
        if found:
            return


def _scored(values: Mapping[str, Any], mapped: Mapping[str, str]) -> _Way:
    """One answer and its score; its neighbours hold the other answers."""
    answer = _first(values, mapped, "completion", COMPLETIONS, _says_something)
    score = _first(values, mapped, "score", SCORES, lambda v: number(v) is not None or v == "N/A")
    for _, prompt in _prompts(values, mapped) if answer and score else ():
        if prompt["prompt"] != answer:
            yield "scored", {"completion": answer, "score": score} | prompt


def _prompts(
    values: Mapping[str, Any], mapped: Mapping[str, str], more: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """What can be the prompt, and the shape that is known by it; several if none is surer."""
    if "prompt" in mapped or _says_something(values.get("prompt")):
        column = mapped.get("prompt", "prompt")
        if _says_something(values.get(column)):
            yield "prompt", {"prompt": column}
        return
    texts = [c for c in (*TEXT_PROMPTS, *more) if isinstance(values.get(c), str)]
    if {"instruction", "input"} <= set(texts):
        texts.remove("input")
    texts = [c for c in texts if values[c].strip()] or texts[:1]
    for column in texts:
        yield ("alpaca" if column == "instruction" else "orca"), {"prompt": column}
    for column in () if texts else CONVERSATIONS:
        if _is_conversation(values.get(column)):
            speaks = "from" in values[column][0]
            yield ("sharegpt" if speaks else "prompt"), {"prompt": column}
            return


def _rendered(
    found: list[Any], prompts: list[tuple[str, dict[str, str]]], values: Mapping[str, Any]
) -> dict[str, str] | None:
    """The columns of texts that carry a template's markers, if these do."""
    if not all(isinstance(v, str) for v in found):
        return None
    texts = [(p, values[p["prompt"]]) for _, p in prompts]
    for prompt, text in texts:
        if isinstance(text, str) and is_rendered(text):
            return prompt
    return {} if not texts and all(is_rendered(v) for v in found) else None


def _called(name: str, names: tuple[str, ...]) -> str:
    return "orca" if name == "alpaca" and names == PAIRS[1] else name


def _copied(prompts: list[tuple[str, dict[str, str]]]) -> dict[str, str]:
    return {"copy": prompts[0][1]["prompt"]} if prompts else {}


def _list_of_two(values: Mapping[str, Any], mapped: Mapping[str, str]) -> dict[str, str]:
    """LLaMA-Factory's older rows: `output` holds the better and the worse answer."""
    output = values.get("output")
    two = isinstance(output, list) and len(output) == 2 and all(isinstance(o, str) for o in output)
    if not two or not isinstance(values.get("instruction"), str):
        return {}
    return {"prompt": mapped.get("prompt", "instruction"), "both": "output"}


def _named(
    mapped: Mapping[str, str], roles: tuple[str, str], known: Iterable[tuple[str, str]]
) -> Iterable[tuple[str, str]]:
    """The two columns of two roles: as mapped, else all that are known."""
    if not mapped.keys() & set(roles):
        return known
    return [(mapped.get(roles[0], roles[0]), mapped.get(roles[1], roles[1]))]


def _first(
    values: Mapping[str, Any], mapped: Mapping[str, str], role: str, known: Iterable[str], fits: Any
) -> str:
    """The column of a role: as mapped, else the first of the known whose value fits."""
    names = (mapped[role],) if role in mapped else known
    return next((n for n in names if values.get(n) is not None and fits(values[n])), "")


def _is_list_of(length: int, value: Any) -> bool:
    return isinstance(value, list) and len(value) == length


def _any(value: Any) -> bool:
    return True


def _says_something(value: Any) -> bool:
    return isinstance(value, str | list | dict) and bool(value)


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return "role" in value[0] or "from" in value[0]


def _begins_with_prompt(value: Any) -> bool:
    """Whether a value is a conversation that does not begin with the answer."""
    value = value.get("messages") if isinstance(value, dict) else value
    if not _is_conversation(value):
        return False
    return bool(plain(value[0]).get("role") != "assistant")
