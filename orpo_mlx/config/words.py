"""Options as they are written on a command line."""

import json
from typing import Any

from orpo_mlx.config.groups import Options


def flags_of(kind: type[Options], name: str) -> list[str]:
    """The flags of a field: those declared, or its name with dashes."""
    extra = kind.model_fields[name].json_schema_extra
    declared: Any = extra["flags"] if isinstance(extra, dict) else None
    return declared or ["--" + name.replace("_", "-")]


def words_of(kind: type[Options], name: str, value: Any) -> list[str]:
    """A setting as it is written on a command line; no word for one that is not set."""
    flag = flags_of(kind, name)[0]
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, dict):
        return [word for key, v in value.items() for word in (flag, f"{key}={_yaml_text(v)}")]
    if isinstance(value, list):
        return [word for item in value for word in (flag, item)]
    return [flag, str(value)]


def _yaml_text(value: Any) -> str:
    """A value of a key=value option: text as it is where YAML reads it as text, else JSON."""
    from orpo_mlx.yaml_files import parse_yaml

    if isinstance(value, str) and parse_yaml(value).content == value:
        return value
    return json.dumps(value)
