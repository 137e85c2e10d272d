"""docs/design.md is true of the tree, as is CONTRIBUTING.md: every path that they name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST_LINES = 250
# Of a run folder or a checkout in use, not of the repository.
ELSEWHERE = ("adapters/NAME/", "checkpoints/step-0000100/", "trunk/")


def paths(text: str) -> list[str]:
    """What is in backticks and looks like a path: it has a slash, or ends as a Python file."""
    code = re.findall(r"`([^`\n]+)`", text)
    named = [c.split(":")[0] for c in code if re.fullmatch(r"[\w./-]+(: [\w.]+)?", c)]
    return [n for n in named if ("/" in n or n.endswith(".py")) and not n.startswith("/")]


def exists(path: str) -> bool:
    return any((ROOT / folder / path).exists() for folder in ("", "orpo_mlx", "tests"))


@pytest.mark.parametrize("path", sorted({*paths(PAGE), *paths(CONTRIBUTING)} - set(ELSEWHERE)))
def test_every_path_exists(path: str) -> None:
    assert exists(path)


def test_a_path_that_is_gone_is_seen() -> None:
    assert paths("See `data/reading/sources.py`, `a/b.py: name`, `--beta` and `lora_A`.") == [
        "data/reading/sources.py",
        "a/b.py",
    ]
    assert not exists("data/reading/gone.py")


def test_it_stays_short_and_is_pointed_to() -> None:
    assert len(PAGE.splitlines()) <= MOST_LINES
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "docs/design.md" in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_newcomers_questions_have_one_path_each() -> None:
    rows = re.findall(r"^\| (\w.*\?) \| (.*) \|$", PAGE, re.M)
    assert len(rows) >= 10
    assert all(len([p for p in paths(answer) if exists(p)]) == 1 for _, answer in rows)
