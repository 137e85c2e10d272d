"""Settings from flags, a YAML file and defaults, and what is wrong with them in plain words."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from orpo_mlx.config.groups import LEAVE, Options
from orpo_mlx.config.words import flags_of
from orpo_mlx.errors import OrpoError, collected

C = TypeVar("C", bound=Options)
EMPTY = "must not be empty"
MAX_SHOWN = 100  # characters of a wrong value
BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "string_unicode": "must be UTF-8",
    "too_short": "must be {min_length} or more, found {actual_length}",
    "too_long": "must be {max_length} or fewer, found {actual_length}",
}
# By the first part of pydantic's name of a fault.
TYPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "path": "must be a path",
    "date": "must be a date like 2026-01-31",
    "dict": "must be key=value",
    "list": "must be a list",
}


class Layer(NamedTuple):
    """Options from one source: a file's name, or "" for the command line."""

    location: str
    values: Mapping[str, Any]


def load_config_file(path: Path, flag: str = "--config") -> Layer:
    """The keys of a YAML file; raises OrpoError with flag, file and line if it cannot be read."""
    import yaml

    from orpo_mlx.yaml_files import LimitError, read_yaml

    where = f"{flag} {path}"
    try:
        content, root = read_yaml(path)
    except LimitError as error:
        raise OrpoError(f"{where}: too large for settings: {error}.") from None
    except OSError as error:
        raise OrpoError(f"{where}: cannot be read ({error.strerror}).") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise OrpoError(f"{where}: not YAML: {error.problem} in line {line}.") from None
    except (yaml.YAMLError, ValueError) as error:  # bytes that are not text, an impossible date
        raise OrpoError(f"{where}: not YAML: {' '.join(str(error).split())}.") from None
    if root is None:
        return Layer(str(path), {})
    if not isinstance(content, dict):
        raise OrpoError(f"{where}: must hold 'key: value' lines.")
    keys = [str(key.value).replace("-", "_") for key, _ in root.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise OrpoError(f"{where}: {', '.join(twice)} is given twice.")
    values = {str(k).replace("-", "_"): value for k, value in content.items()}
    if values.pop(LEAVE, False) not in (False, None):
        raise OrpoError(
            f"{where}: {LEAVE}: leave to run a model's own code is given for one call, by the flag "
            "--trust-remote-code, never by a file."
        )
    return Layer(str(path), values)


def build_config(kind: type[C], layers: Sequence[Layer], problems: Iterable[str] = ()) -> C:
    """Later layers over earlier ones, all over the defaults.

    Raises one OrpoError that lists all that is wrong, after the `problems` found before.
    """
    values = {name: value for layer in layers for name, value in layer.values.items()}
    locations = {name: layer.location for layer in layers for name in layer.values}
    sentences = [*problems, *_empty(kind, values, locations)]
    try:
        config = kind.model_validate(values)
        if not sentences:
            return config
    except ValidationError as error:
        sentences += _sentences(kind, error, locations) + _contradictions(kind, error, values)
    sentences = list(dict.fromkeys(sentences))
    raise OrpoError(sentences[0]) if len(sentences) == 1 else collected("Wrong options:", sentences)


def nearest(word: str, words: Iterable[str]) -> str:
    """`" Did you mean X?"` with the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def _empty(
    kind: type[Options], values: Mapping[str, Any], locations: Mapping[str, str]
) -> list[str]:
    """A sentence per option that was given as "": a variable of a script that is not set."""
    names = [n for n, v in values.items() if (v == "" or v == [""]) and n in kind.model_fields]
    return [f"{_location(kind, name, locations)}: {EMPTY}." for name in names]


def _location(kind: type[Options], name: str, locations: Mapping[str, str]) -> str:
    """Where an option was written: a file and its key, or its flag."""
    return f"{locations[name]}: {name}" if locations.get(name) else flags_of(kind, name)[0]


def _sentences(
    kind: type[Options], error: ValidationError, locations: Mapping[str, str]
) -> list[str]:
    """A sentence per fault, naming the flag or key that holds the value."""
    sentences = []
    for fault in error.errors():
        if not fault["loc"]:
            sentences += [f"{s}." for s in str(fault["ctx"]["error"]).split("\n")]
            continue
        name, in_union = str(fault["loc"][0]), fault["loc"][1:]
        if fault["type"] == "extra_forbidden":
            location = f"{locations[name]}: {name}" if locations.get(name) else name
            sentences.append(f"{location}: no such option.{_nearest_key(kind, name)}")
            continue
        location = _location(kind, name, locations)
        if fault["type"] == "missing":
            sentences.append(f"{location} is missing: {kind.model_fields[name].description}")
        # N|auto given a number: report its bounds, not that it is not the word.
        elif not (in_union and fault["type"] == "literal_error" and type(fault["input"]) is int):
            given = f"{location} {_shown(fault['input'])}".rstrip()
            sentences.append(f"{given}: {_requirement(kind, name, fault)}.")
    return sentences


def _contradictions(
    kind: type[Options], error: ValidationError, values: Mapping[str, Any]
) -> list[str]:
    """Options that contradict each other, among those that are valid alone."""
    bad = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
    known = bad & set(kind.model_fields)
    stand_ins = {name: "-" for name in known if kind.model_fields[name].is_required()}
    good = {name: value for name, value in values.items() if name not in bad}
    try:
        kind.model_validate(good | stand_ins)
    except ValidationError as second:
        flags = [flags_of(kind, name)[0] for name in known]
        return [s for s in _sentences(kind, second, {}) if not any(flag in s for flag in flags)]
    return []


def _nearest_key(kind: type[Options], name: str) -> str:
    keys = {f[2:].replace("-", "_"): key for key in kind.model_fields for f in flags_of(kind, key)}
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    return f" Did you mean {keys[close[0]]}?" if close else ""


def _shown(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _requirement(kind: type[Options], name: str, fault: Any) -> str:
    """What a value must be, for `--flag VALUE: ...`."""
    context = fault.get("ctx", {})
    if fault["input"] in ("", [], [""]):
        return EMPTY
    if fault["type"] == "value_error":
        return str(context["error"])
    if fault["type"] in BOUNDS:
        return BOUNDS[fault["type"]].format(**{k: _number(v) for k, v in context.items()})
    extra: Any = kind.model_fields[name].json_schema_extra
    if word := extra["metavar"].partition("N|")[2]:
        return f"must be a whole number or {word}"
    if fault["type"] == "literal_error":
        return f"must be one of {context['expected']}".replace("'", "")
    return TYPES.get(fault["type"].split("_")[0], str(fault["msg"]).lower())


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
