"""A row format is a file, a line of the ordered list, a name and a section of docs/data.md."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import orpo_mlx
from orpo_mlx.config.groups import ReadOptions
from orpo_mlx.data.pairs import row_formats
from orpo_mlx.data.pairs.format_names import FORMAT_NAMES
from orpo_mlx.data.pairs.row_formats.ordered import ORDERED, spec_of

PACKAGE = Path(orpo_mlx.__file__).parent
FOLDER = Path(row_formats.__file__).parent
FILES = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "__init__.py", FOLDER / "ordered.py"})
SPECS = {file: import_module(f"{row_formats.__name__}.{file.stem}").FORMAT for file in FILES}
NAMES_FILE = PACKAGE / "data" / "pairs" / "format_names.py"


def test_every_file_is_one_line_of_the_ordered_list() -> None:
    assert len(ORDERED) == len(FILES)
    assert all(any(spec is own for spec in ORDERED) for own in SPECS.values())


def test_names_files_page_and_option_agree() -> None:
    page = (PACKAGE.parent / "docs" / "data.md").read_text(encoding="utf-8")
    sections = re.search(r"^## Row formats\n(.*?)^## ", page, re.M | re.S)
    assert sections
    assert tuple(re.findall(r"^### (\w+)$", sections[1], re.M)) == FORMAT_NAMES
    assert sorted(name for spec in ORDERED for name in spec.names) == sorted(FORMAT_NAMES)
    assert all(name in spec_of(name).names for name in FORMAT_NAMES)
    assert get_args(ReadOptions.model_fields["format"].annotation) == ("auto", *FORMAT_NAMES)


def format_names_in(source: str) -> Iterator[str]:
    """The names of formats that a module holds as strings.

    "prompt" is the name of a column, too: it counts where it is compared with a name or a format.
    "ab" is also how a file is opened for appending: what `open` is given does not count.
    """
    tree = ast.parse(source)
    modes = {value for node in ast.walk(tree) if is_open(node) for value in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in FORMAT_NAMES:
            if node.value != "prompt" and node not in modes:
                yield str(node.value)
        elif isinstance(node, ast.Compare):
            names = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            if "prompt" in names and any(map(is_name, [node.left, *node.comparators])):
                yield "prompt"


def is_open(node: ast.AST) -> bool:
    """Whether a file is opened: `open(...)` or `x.open(...)`."""
    function = getattr(node, "func", None)
    return "open" in (getattr(function, "attr", ""), getattr(function, "id", ""))


def is_name(node: ast.AST) -> bool:
    """Whether an expression is called as what holds a format's name."""
    called = getattr(node, "attr", getattr(node, "id", ""))
    return called.endswith(("name", "format", "forced"))


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(PACKAGE.rglob("*.py")) if file != NAMES_FILE],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_no_other_file_knows_a_format_by_name(file: Path) -> None:
    own = set(SPECS[file].names) if file in SPECS else set()
    assert set(format_names_in(file.read_text(encoding="utf-8"))) <= own


@pytest.mark.parametrize(
    "planted",
    [
        'if row_format.name == "kto": pass',
        'if "hh" == guess.name: pass',
        'if guess.name in ("ab", "other"): pass',
        'if row_format.name == "prompt": pass',
        'if reading.format not in ("auto", "prompt"): pass',
        'read = {"scored": 1}[row_format.name]',
        'match name:\n    case "ranked": pass',
        'file.open("ab") if row_format.name == "ab" else None',
        'read("ab", opened(file))',
    ],
)
def test_a_name_in_a_file_that_is_not_its_own_is_seen(planted: str) -> None:
    assert list(format_names_in(planted))


def test_how_a_file_is_opened_is_not_a_format() -> None:
    assert not list(format_names_in('file.open("ab"); open(file, mode="ab")'))


def test_the_column_of_the_prompt_is_not_a_format() -> None:
    assert not list(format_names_in('"prompt" in columns and values["prompt"] == "scores"'))
