"""YAML that may be anybody's: bounded in size, in what its aliases expand to, and in depth."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orpo_mlx.errors import OrpoError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_LEVELS = 50


class LimitError(yaml.YAMLError):
    """What makes a text too large to be settings."""


class Document(NamedTuple):
    """A text as Python values, and its nodes, which know their lines; None for an empty one."""

    content: Any
    root: yaml.Node | None


def read_yaml(file: Path) -> Document:
    """`parse_yaml` of a file; also raises OSError, and UnicodeDecodeError for what is not UTF-8."""
    with file.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise LimitError(f"larger than {MAX_BYTES / 1e6:g} MB")
    return parse_yaml(content.decode("utf-8"))


def load_yaml_settings(file: Path) -> dict[str, Any]:
    """The `key: value` lines of a file; raises OrpoError if it cannot be read or holds others."""
    try:
        values = read_yaml(file).content
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OrpoError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise OrpoError(f"{file} is damaged: it must hold 'key: value' lines.")
    return values


def parse_yaml(text: str) -> Document:
    """The values of a text without any Python objects; raises yaml.YAMLError, or ValueError for an
    impossible date."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except RecursionError:
        raise LimitError(f"nested more than {MAX_LEVELS} levels deep") from None
    if root is not None:
        _check(root)
    return Document(yaml.safe_load(text), root)


def _check(root: yaml.Node) -> None:
    """Raise LimitError for nodes without end, too many with every alias in full, or too deep."""
    sizes: dict[int, tuple[int, int]] = {}  # nodes and levels, by identity
    under_way: set[int] = set()

    def measure(node: yaml.Node, level: int) -> tuple[int, int]:
        if id(node) in under_way:
            raise LimitError("a part of it holds itself")
        if level > MAX_LEVELS:
            raise LimitError(f"nested more than {MAX_LEVELS} levels deep")
        if id(node) not in sizes:
            under_way.add(id(node))
            inner = [measure(child, level + 1) for child in _children(node)]
            under_way.remove(id(node))
            count = 1 + sum(nodes for nodes, _ in inner)
            levels = 1 + max((below for _, below in inner), default=0)
            sizes[id(node)] = count, levels
        return sizes[id(node)]

    nodes, levels = measure(root, 1)
    if levels > MAX_LEVELS:
        raise LimitError(f"nested more than {MAX_LEVELS} levels deep")
    if nodes > MAX_NODES:
        raise LimitError(f"{nodes:,} values, its aliases written out; at most {MAX_NODES:,}")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
