"""A Python that a test starts finds no torch, as where orpo-mlx is used: 2 s less each."""

from importlib.machinery import PathFinder
from typing import Any

_find_spec = PathFinder.find_spec


def find_spec(finder: type, name: str, *where: Any) -> Any:
    return None if name == "torch" else _find_spec(name, *where)


PathFinder.find_spec = classmethod(find_spec)  # type: ignore[method-assign, assignment]
