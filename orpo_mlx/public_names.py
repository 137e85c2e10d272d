"""What may leave this machine: names without its local paths."""

import re
from collections.abc import Callable, Sequence
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any

from orpo_mlx.data.reading.sources import bare_name, is_hub_source
from orpo_mlx.files import user_path

# Where programs write the path of a folder on the machine that they ran on.
PATH_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file")
_LOCAL = re.compile(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\).*|[^\s\\]+(\\[^\s\\]+)+", re.DOTALL)
_ABSOLUTE = re.compile(r"([\\/~]|[A-Za-z]:[\\/]).*", re.DOTALL)
_OF_A_PATH = re.compile(r".*(path|file|dir)")  # keys
_SPLIT = re.compile(r"\[[\w.-]+\]$")  # NAME[SPLIT], as locations have it


def public_name(value: Any) -> Any:
    """A value with every local path in it cut to its last part; ids of the Hub stay."""
    if isinstance(value, list):
        return [public_name(item) for item in value]
    if isinstance(value, dict):
        return {key: public_name(item) for key, item in value.items()}
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or "\n" in value:
        return value
    name = _SPLIT.sub("", bare_name(value))
    if _LOCAL.fullmatch(value) or ("/" in value and not is_hub_source(name)):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def without_paths(values: Any, key: str = "") -> Any:
    """The JSON of a model's folder with the local paths that programs left in it cut."""
    if isinstance(values, dict):
        return {key: without_paths(item, key) for key, item in values.items()}
    if isinstance(values, list):
        return [without_paths(item, key) for item in values]
    is_path = isinstance(values, str) and _OF_A_PATH.fullmatch(key) and _ABSOLUTE.fullmatch(values)
    return public_name(values) if is_path or key in PATH_KEYS else values


def folder_remover(sources: Sequence[str]) -> Callable[[str], str]:
    """What cuts, in texts that name files of these sources, each source to its last part.

    Of sources with the same last part the later ones are numbered.
    """
    shown: dict[str, str] = {}
    for name in map(bare_name, sources):
        path = user_path(name)
        if has_magic(name) and not path.exists():
            fixed = Path(*takewhile(lambda part: not has_magic(part), path.parts))
            shown[f"{fixed}/"] = ""
        elif not is_hub_source(name) and name not in shown:
            count = sum(Path(known).name == path.name for known in {*shown} - {str(path)})
            shown[name] = shown[str(path)] = path.name + f" ({count + 1})" * (count > 0)
    longest_first = "|".join(re.escape(n) for n in sorted(shown, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w./~-])({longest_first})(?:(?<=/)|(?![\w-]))")
    return lambda text: pattern.sub(lambda match: shown[match[1]], text) if shown else text
