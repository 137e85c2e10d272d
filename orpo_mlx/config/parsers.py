"""Values as people write them, in flags, YAML or Python, into those that the options hold."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from orpo_mlx.files import name_and_number, user_path


def _split(value: Any) -> Any:
    """Names separated by commas, in one text or several."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return value
    return [name for item in value for part in item.split(",") if (name := part.strip())]


def _pairs(value: Any) -> Any:
    """`["key=value", ...]` of the command line into a mapping; values are YAML (true, 3, text)."""
    import yaml

    from orpo_mlx.yaml_files import parse_yaml

    if not isinstance(value, list):
        return value
    if not all("=" in str(item) for item in value):
        raise ValueError("must be key=value")
    parts = (str(item).split("=", 1) for item in value)
    try:
        return {key: parse_yaml(text).content for key, text in parts}
    except yaml.YAMLError:
        raise ValueError("the value is not YAML; put quotes around it: key='\"value\"'") from None


def _columns(value: Any) -> Any:
    """`"prompt=question,chosen=good"` into a mapping."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    if not isinstance(value, str):
        return value
    parts = [part.split("=", 1) for part in value.split(",") if part.strip()]
    if not all(len(part) == 2 and part[0].strip() and part[1].strip() for part in parts):
        raise ValueError("must be NAME=COLUMN, separated by commas")
    return {name.strip(): column.strip() for name, column in parts}


def path_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _sources(value: Any) -> Any:
    """One or several sources, each named once: the pairs of a second mention would count double."""
    value = [path_as_text(v) for v in (value if isinstance(value, list | tuple) else [value])]
    if all(isinstance(item, str) for item in value):
        locations = [user_path(item).resolve() for item in value]
        twice = [item for i, item in enumerate(value) if locations[i] in locations[:i]]
        if twice:
            raise ValueError(f"names {twice[0]} twice")
    return value


def texts(value: Any) -> Any:
    """One or several texts; paths are texts too."""
    return [path_as_text(v) for v in (value if isinstance(value, list | tuple) else [value])]


def folders(value: Any) -> Any:
    """One or several folders; the same one twice is one."""
    values = value if isinstance(value, list | tuple) else [value]
    paths = [user_path(v) if isinstance(v, str | Path) else v for v in values]
    return list(dict.fromkeys(paths))


def folder_and_share(text: str) -> tuple[Path, float]:
    """A folder and its share, 1 if none is named; raises ValueError unless that is a number."""
    try:
        name, share = name_and_number(text, "share")
    except ValueError as error:
        raise ValueError(f"--adapter {error}") from None
    return user_path(name), share


def on_off(value: Any) -> Any:
    """YAML reads a bare on or off as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def number_or_word(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch("-?[0-9]+", value) else value


def all_is_none(value: Any) -> Any:
    return None if value == "all" else value


def one_word(value: Any) -> Any:
    """The only one of the words that are given without a flag."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"must be one, found {len(value)}")
        return value[0]
    return value


def file_name(value: str) -> str:
    """A name that can be that of one folder, and not an option of a command."""
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise ValueError("must be letters, digits, dots, dashes and underscores")
    return value


ColumnMap = Annotated[dict[str, str], BeforeValidator(_columns)]
CommaList = Annotated[list[str], BeforeValidator(_split)]
SinkNames = Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_split)]
KeyValues = Annotated[dict[str, Any], BeforeValidator(_pairs)]
Sources = Annotated[list[str], BeforeValidator(_sources)]
