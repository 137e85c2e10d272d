"""What may leave this machine: names without its local paths."""

import re
from pathlib import Path
from typing import Any

from orpo_mlx.data.reading.sources import bare_name, is_hub_source

_LOCAL = re.compile(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/]).*", re.DOTALL)


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
    if _LOCAL.fullmatch(value) or ("/" in value and not is_hub_source(bare_name(value))):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value
