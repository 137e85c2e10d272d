"""What columns are usually called and what their values can mean: what guesses are made of."""

from collections.abc import Callable, Collection, Iterable, Iterator
from decimal import Decimal
from typing import Any

from orpo_mlx.data.pairs.messages import plain
from orpo_mlx.data.pairs.row_format import FormatName, Guess, Mapped, Values

# What --columns can name.
ROLES = (
    "prompt", "chosen", "rejected", "system", "tools", "input", "history", "completion", "label",
    "score", "answers", "scores", "first", "second", "verdict", "weight",
)  # fmt: skip
PAIR_COLUMNS = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
# Used where none of PAIR_COLUMNS is there.
OTHER_PAIR_COLUMNS = (
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("accepted", "rejected"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    ("conversations", "rejected_response"),
    ("response", "rejected_response"),
)
TEXT_PROMPTS = ("question", "instruction", "input", "query")
CONVERSATIONS = ("conversations", "conversation", "messages", "context")


def number(value: Any) -> float | None:
    """A number, written as one or as text; None for what is neither ("N/A")."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if result - result == 0 else None  # no NaN, no infinity


def truth(value: Any) -> bool | None:
    """True or false, as such, as 1 or 0, or in words; None for what is neither."""
    word = str(value).lower() if isinstance(value, bool | int | str) else ""
    return {"true": True, "1": True, "false": False, "0": False}.get(word)


def guess_of(name: FormatName, *columns: Mapped) -> Guess:
    """A guess of columns by role; of a role that comes twice the later holds."""
    by_role = {role: column for part in columns for role, column in part.items()}
    return Guess(name, tuple(by_role.items()))


def pair_columns(values: Values, mapped: Mapped) -> Iterator[tuple[dict[str, str], list[Any]]]:
    """Columns of a chosen and a rejected answer, by role, and what they hold."""
    named = named_columns(mapped, ("chosen", "rejected"), PAIR_COLUMNS)
    pairs = [pair for pair in named if _are_columns(pair, values)]
    if not pairs and named is PAIR_COLUMNS:
        pairs = [pair for pair in OTHER_PAIR_COLUMNS if _are_columns(pair, values)][:1]
    for chosen, rejected in pairs:
        both = values[chosen], values[rejected]
        if answers := [answer for answer in both if answer is not None]:
            yield {"chosen": chosen, "rejected": rejected}, answers


def _are_columns(names: tuple[str, str], values: Values) -> bool:
    return all(name in values for name in names)


def prompt_columns(
    values: Values,
    mapped: Mapped,
    more: tuple[str, ...] = (),
    answers: Collection[str] = (),  # columns that are not the prompt
) -> Iterator[dict[str, str]]:
    """The column that can be the prompt, by its role; several if none is surer."""
    values = {name: value for name, value in values.items() if name not in answers}
    if "prompt" in mapped or has_content(values.get("prompt")):
        column = mapped.get("prompt", "prompt")
        if has_content(values.get(column)):
            yield {"prompt": column}
        return
    texts = [c for c in (*TEXT_PROMPTS, *more) if isinstance(values.get(c), str)]
    if {"instruction", "input"} <= set(texts):
        texts.remove("input")
    texts = [c for c in texts if values[c].strip()] or texts[:1]
    lists = (*CONVERSATIONS, "input")
    conversations = [c for c in lists if is_conversation(nested_messages(values.get(c)))]
    yield from ({"prompt": column} for column in texts or conversations[:1])


def copied_prompt(prompts: Iterable[dict[str, str]]) -> dict[str, str]:
    """The column that repeats the prompt which the answers hold, if there is one."""
    return next(({"copy": columns["prompt"]} for columns in prompts), {})


def prompt_copied(values: Values, mapped: Mapped, answers: Mapped) -> dict[str, str]:
    """`copied_prompt` of the columns that are not the answers' own."""
    return copied_prompt(prompt_columns(values, mapped, answers=answers.values()))


def named_columns(
    mapped: Mapped, roles: tuple[str, str], known: Iterable[tuple[str, str]]
) -> Iterable[tuple[str, str]]:
    """The two columns of two roles: as mapped, else all that are known."""
    if not mapped.keys() & set(roles):
        return known
    return [(mapped.get(roles[0], roles[0]), mapped.get(roles[1], roles[1]))]


def first_column(
    values: Values,
    mapped: Mapped,
    role: str,
    known: Iterable[str],
    fits: Callable[[Any], bool] = lambda value: True,
) -> str:
    """The column of a role: as mapped, else the first of the known whose value fits."""
    names = (mapped[role],) if role in mapped else known
    return next((n for n in names if values.get(n) is not None and fits(values[n])), "")


def has_content(value: Any) -> bool:
    """Whether a value is a text, a message or a list of some, and not empty."""
    return isinstance(value, str | list | dict) and bool(value)


def is_conversation(value: Any) -> bool:
    """Whether a value is a list that begins with a message."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return "role" in value[0] or "from" in value[0]


def nested_messages(value: Any) -> Any:
    """The messages of {"messages": [...]}; another value as it is."""
    return value["messages"] if isinstance(value, dict) and "messages" in value else value


def begins_with_prompt(value: Any) -> bool:
    """Whether a value is a conversation that does not begin with the answer."""
    value = nested_messages(value)
    if not is_conversation(value):
        return False
    return bool(plain(value[0]).get("role") != "assistant")
