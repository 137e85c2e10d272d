"""Which format the rows of a source have, decided once from the first of them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orpo_mlx.data.pairs import sft
from orpo_mlx.data.pairs.columns import ROLES
from orpo_mlx.data.pairs.describe import sentence_of
from orpo_mlx.data.pairs.fields import MEDIA, value_of
from orpo_mlx.data.pairs.format_names import FORMAT_NAMES
from orpo_mlx.data.pairs.message_parts.nulls import nulls_of
from orpo_mlx.data.pairs.message_parts.tool_calls import TOOL_KEYS, are_functions
from orpo_mlx.data.pairs.row_format import HIGHER, LOWER, MIN_MARGIN, Guess, Reading, RowFormat
from orpo_mlx.data.pairs.row_formats.explicit import USUAL
from orpo_mlx.data.pairs.row_formats.ordered import guesses, spec_of
from orpo_mlx.data.pairs.turns import has_steered_turns, has_turns
from orpo_mlx.data.reading.sources import Row
from orpo_mlx.errors import OrpoError

RECOGNIZED_ROWS = 1000
# What tables of text hold where a list was written into them.
_LIST = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:.*\}\s*\]\s*\Z""", re.S)
_CONVERSATIONAL = ("prompt", "chosen", "rejected", "messages", "conversations", "completion")
_SYSTEMS = ("system", "system_prompt")
_STATES = ("tie", "swapped", "unchanged")  # distilabel's column "status"


def recognize(rows: Sequence[Row], reading: Reading, source: str) -> RowFormat:
    """The format of a source, from its first rows; raises OrpoError if none fits, or two do."""
    if reading.sft:
        reading = sft.own_reading(reading, {name for row in rows for name in row.values})
    _check(rows, reading, source)
    fitting = [_allowed(guesses(row.values, reading), reading.format) for row in rows]
    counts = Counter(candidates[0] for candidates in fitting if candidates)
    if not counts:
        if problem := _unknown(rows, reading):
            raise OrpoError(f"{source}: {problem}")
        usual = sft.USUAL if reading.sft else USUAL
        return _row_format(_with_names(usual, reading), rows, reading)
    (best, count), *_ = counts.most_common()
    example = next(candidates for candidates in fitting if candidates and candidates[0] == best)
    if rivals := _rivals(example):
        raise OrpoError(f"{source}: {_ambiguous([best, *rivals])}")
    others = sum(bool(candidates) and best not in candidates for candidates in fitting)
    if others >= count:
        raise OrpoError(f"{source}: {_mixed(counts)}")
    if problem := _useless(best.name, reading):
        raise OrpoError(f"{source}: {problem}")
    own = [row for row, candidates in zip(rows, fitting, strict=True) if best in candidates]
    return _row_format(best, own, reading)


def other_format(values: Mapping[str, Any], row_format: RowFormat) -> str:
    """The format of a row if it is not its source's, or its other columns; else nothing."""
    candidates = guesses(values, row_format.reading)
    if not candidates or row_format.guess in candidates:
        return ""
    name, columns = candidates[0]
    return name if name != row_format.name else "columns " + ", ".join(c for _, c in columns)


def _allowed(candidates: list[Guess], forced: str) -> list[Guess]:
    """The guesses that a forced format allows."""
    if forced == "auto":
        return candidates
    names = spec_of(forced).names
    own = [guess for guess in candidates if guess.name in names]
    return sorted(own, key=lambda guess: guess.name != forced)


def _rivals(candidates: Sequence[Guess]) -> list[Guess]:
    """Other readings of a row that are as good as its first."""
    first, roles = candidates[0], [role for role, _ in candidates[0].columns]
    return [
        guess
        for guess in dict.fromkeys(candidates[1:])
        if ([role for role, _ in guess.columns] == roles and guess.columns != first.columns)
        or (spec_of(first.name).is_unsure and guess.name != first.name)
    ]


def _row_format(guess: Guess, rows: Sequence[Row], reading: Reading) -> RowFormat:
    """A format with the columns and conventions that its rows show."""
    values = [row.values for row in rows]
    present = {name for row in values for name, value in row.items() if value is not None}
    if not any(are_functions(row.get(TOOL_KEYS[1])) for row in values):
        present -= {TOOL_KEYS[1]}
    optional = _optional(guess, present, reading.columns)
    columns = dict(guess.columns) | optional
    weight = reading.columns.get("weight", "weight")
    columns |= {"weight": weight} if weight not in columns.values() else {}
    score = columns.get("scores") or columns.get("score") or ""
    higher = reading.higher_is_better
    prompts = [str(row.get(columns["prompt"], "")) for row in values if "prompt" in columns]
    row_format = RowFormat(
        spec_of(guess.name),
        "",
        guess,
        columns,
        frozenset(columns.values()) | {"chosen", "rejected"},
        MEDIA | frozenset(optional.values()) | frozenset(TOOL_KEYS),
        reading,
        higher_is_better="rank" not in score.lower() if higher is None else higher,
        repeats_prompt=bool(rows) and all(_repeats(row, columns) for row in values),
        has_turns=_mostly(prompts, lambda text: has_turns(text) or has_steered_turns(text)),
        has_ties=_has_ties([row.get("status") for row in values]),
    )
    row_format = row_format._replace(nulls=nulls_of(rows, row_format.tool_columns))
    return row_format._replace(sentence=sentence_of(row_format, values, present))


def _optional(guess: Guess, present: set[str], mapped: Mapping[str, str]) -> dict[str, str]:
    """Columns that a row of a format may have or not; by their usual names if none has them."""
    known: dict[str, tuple[str, ...]] = {"system": _SYSTEMS, "tools": TOOL_KEYS}
    if ("prompt", "instruction") in guess.columns:
        known |= {"history": ("history",), "input": ("input",)}
    if {("prompt", "query"), ("chosen", "response")} <= set(guess.columns):
        known |= {"history": ("history",)}
    known |= {role: (mapped[role],) for role in ("history", "input") if role in mapped}
    used = {column for _, column in guess.columns}
    optional: dict[str, str] = {}
    for role, usual in known.items():
        names = [n for n in ((mapped[role],) if role in mapped else usual) if n not in used]
        optional |= {role: next((n for n in names if n in present), names[0])} if names else {}
    return optional


def _repeats(values: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    """Whether both answers are texts that begin with the prompt's."""
    prompt, *answers = (value_of(values, columns, r) for r in ("prompt", "chosen", "rejected"))
    return (
        isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(a, str) and a.startswith(prompt) and a != prompt for a in answers)
    )


def _has_ties(states: Sequence[Any]) -> bool:
    return "tie" in states and all(state in _STATES for state in states)


def _mostly(texts: Sequence[str], holds: Callable[[str], bool]) -> bool:
    return 2 * sum(map(holds, texts)) > len(texts) or any(map(has_steered_turns, texts))


def _check(rows: Sequence[Row], reading: Reading, source: str) -> None:
    """Raises OrpoError for columns that are mapped but not there, and for those not read."""
    present = list(dict.fromkeys(name for row in rows for name in row.values))
    names = ", ".join(present)
    problems = [
        f"--columns {role}={column}: {role} is not a column role (allowed: {', '.join(ROLES)})."
        for role, column in reading.columns.items()
        if role not in ROLES
    ]
    problems += [
        f'--columns {role}={column}: {source} has no column "{column}" (found: {names}).'
        for role, column in reading.columns.items()
        if role in ROLES and rows and column not in present
    ]
    media = [n for n in present if n in MEDIA and any(row.values.get(n) for row in rows)]
    if media:
        location = next(row.location for row in rows if row.values.get(media[0]))
        names = ", ".join(f'"{name}"' for name in media)
        problems.append(f"{source}: {names} hold images or sound, which are not read ({location}).")
    if written := [name for name in _CONVERSATIONAL if _are_written_lists(rows, name)]:
        names = ", ".join(f'"{name}"' for name in written)
        problems.append(
            f"{source}: {names} hold lists of messages written as text. Save them as lists, in "
            "JSON Lines or Parquet."
        )
    if reading.format not in ("auto", *FORMAT_NAMES):
        allowed = ", ".join(FORMAT_NAMES)
        problems.append(f"--format {reading.format}: no such row format (allowed: {allowed}).")
    if problems:
        raise OrpoError("\n".join(problems))


def _are_written_lists(rows: Sequence[Row], name: str) -> bool:
    """Whether a column's texts are all lists of dicts, as JSON or as Python writes them."""
    texts = [row.values[name] for row in rows if row.values.get(name)]
    return bool(texts) and all(isinstance(v, str) and _LIST.match(v) is not None for v in texts)


def _unknown(rows: Sequence[Row], reading: Reading) -> str:
    """Why no format fits; nothing if it is better to name what each row lacks."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    columns = ", ".join(names)
    if not names:
        return ""
    if reading.sft:
        return sft.why_unknown(names)
    if reading.format != "auto":
        return f"no row can be read as --format {reading.format} (columns: {columns})."
    if not names.keys() & {"chosen", "rejected"}:
        return f"no known row format (columns: {columns}). {_HOW}"
    lacking = [name for name in ("chosen", "rejected") if name not in names]
    others = names.keys() - {"prompt", "chosen", "rejected"}
    if lacking and others and not reading.columns.keys() & {"chosen", "rejected"}:
        named = f'no column "{lacking[0]}" in any row (columns: {columns})'
        return f"{named}: name it with --columns {lacking[0]}=NAME."
    if "prompt" in names:
        return ""
    return (
        "chosen and rejected have no prompt, and hold no turns: name the prompt's column "
        f"with --columns prompt=NAME (columns: {columns})."
    )


_HOW = (
    "Name them with --columns prompt=NAME,chosen=NAME,rejected=NAME; docs/data.md shows "
    "every row format."
)


def _ambiguous(candidates: Sequence[Guess]) -> str:
    """Why a row has two readings, and how to choose one."""
    names = list(dict.fromkeys(guess.name for guess in candidates))
    by_role = zip(*(guess.columns for guess in candidates), strict=False)
    differing = [choices for choices in by_role if len(set(choices)) > 1]
    if len({tuple(role for role, _ in guess.columns) for guess in candidates}) == 1 and differing:
        role = differing[0][0][0]
        columns = list(dict.fromkeys(column for _, column in differing[0]))
        both = " and ".join(f'"{column}"' for column in columns)
        return f"{both} could each be the {role}: name one with --columns {role}={columns[0]}."
    return f"the rows can be read as {' and as '.join(names)}: choose with --format {names[0]}."


def _useless(name: str, reading: Reading) -> str:
    """Which options do not apply to rows of a format, or nothing."""
    given = {
        MIN_MARGIN: reading.min_margin is not None,
        HIGHER: reading.higher_is_better is True,
        LOWER: reading.higher_is_better is False,
    }
    useful = spec_of(name).options
    useless = [option for option, is_given in given.items() if is_given and option not in useful]
    if not useless:
        return ""
    verb = "is" if len(useless) == 1 else "are"
    return f"{' and '.join(useless)} {verb} for scored answers; the row format is {name}."


def _mixed(counts: Counter[Guess]) -> str:
    listed = [
        f"{count:,} {_rows(count)} as {guess.name} ({', '.join(c for _, c in guess.columns)})"
        for guess, count in counts.most_common()
    ]
    return (
        f"the rows have several formats, none of them in the majority: {'; '.join(listed)}. Choose "
        f"with --format {counts.most_common(1)[0][0].name}, or put them into separate files."
    )


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _with_names(guess: Guess, reading: Reading) -> Guess:
    """A guess with the columns that the user named."""
    return guess._replace(
        columns=tuple((role, reading.columns.get(role, name)) for role, name in guess.columns)
    )
