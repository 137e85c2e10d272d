"""What the README shows is true: its rows are read, its Python runs, its flags exist."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from orpo_mlx import events
from orpo_mlx.cli.demo import _table
from orpo_mlx.cli.main import COMMANDS, group
from orpo_mlx.data.pairs.load import load_pairs
from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_rows_are_read_as_pairs(tmp_path: Path) -> None:
    rows = blocks("json")
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    assert len(load_pairs(tmp_path / "pairs.jsonl")) == len(rows) == 2


def test_the_python_runs(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(llama)
    tiny.save_pairs(Path("pairs.jsonl"), 8)
    tiny.save_pairs(Path("test.jsonl"), 4, start=8)
    (code,) = blocks("python")
    exec(code.replace("steps=100", "steps=2"), {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1


def test_the_flags_exist() -> None:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    shown = [line.split("#")[0].split() for line in lines if line.startswith("orpo-mlx ")]
    assert {words[1] for words in shown} == {*COMMANDS} - {"demo", "doctor"}
    context = group.make_context("orpo-mlx", ["--help"], resilient_parsing=True)
    for _, name, *words in shown:
        command = group.get_command(context, name)
        if isinstance(command, click.Group) and words:
            command = command.get_command(context, words[0])
        assert command is not None
        known = {flag for param in command.params for flag in param.opts}
        assert {w for w in words if w.startswith("--")} <= known


def tree_paths(tree: str) -> list[str]:
    """The paths that a tree shows, each indented by two more than the folder that holds it."""
    folders: list[str] = []
    paths = []
    for indent, name in re.findall(r"^( *)([\w./]+)", tree, re.MULTILINE):
        folders[len(indent) // 2 :] = [name]
        paths.append("".join(folders))
    return paths


def test_a_tree_is_read_as_paths() -> None:
    assert tree_paths("a/  one\n  b/\n    c.py  two\n  d/\ne/\n") == [
        "a/",
        "a/b/",
        "a/b/c.py",
        "a/d/",
        "e/",
    ]


def test_the_tree_names_what_is_there() -> None:
    shown = tree_paths(README.split("## Where things are")[1].split("```")[1])
    assert [path for path in shown if not (ROOT / path).exists()] == []
    package = ROOT / "orpo_mlx"
    files = (file.relative_to(ROOT) for file in package.glob("**/*.*") if file.suffix != ".pyc")
    folders = {"/".join(file.parent.parts[:3]) + "/" for file in files}
    assert {path for path in shown if path.startswith("orpo_mlx/") and path[-1] == "/"} == folders


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https:)([^)#]+)", README)
    assert "docs/design.md" in links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_extras_that_are_installed_are_what_commands_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (everything,) = project["optional-dependencies"]["all"]
    needed = set(everything.removeprefix("orpo-mlx[").removesuffix("]").split(","))
    shown = [set(extras.split(",")) for extras in re.findall(r"'\.\[([\w,]+)\]'", README)]
    # CUDA in place of the CPU backend: both bring MLX's library.
    assert shown == [{"all"}, needed - {"cpu"} | {"cuda"}]


def test_the_targets_of_make_exist() -> None:
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([\w-]+)", README, re.MULTILINE)
    assert {"demo", "install", "test"} < set(named) <= set(rules)


def test_the_events_exist() -> None:
    names = re.findall(r"[A-Z]\w+", blocks("python")[0].split("# events:")[1].splitlines()[0])
    assert names and "StopRun" in README
    assert all(hasattr(events, name) for name in [*names, "StopRun"])


def test_the_transcript_has_the_table_that_the_demo_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures: dict[str, Any] = defaultdict(lambda: defaultdict(float))
    figures["brush_off"]["pairs"], figures["subtly_wrong"]["pairs"] = 30, 10
    monkeypatch.setattr("orpo_mlx.demo.before_after.by_kind", lambda evaluation: figures)
    measured = SimpleNamespace(pairs=[None] * 40)
    comparison = SimpleNamespace(base=measured, adapter=measured)
    table = _table(SimpleNamespace(comparison=comparison))  # type: ignore[arg-type]
    labels = [str(table.title), *map(str, table.columns[0].cells)]
    assert len(labels) == 7
    for label in labels:
        assert re.search(rf"^(│ )?{re.escape(label)} *(│|$)", README, re.MULTILINE), label
    assert re.search("┃ +┃ +before ┃ +after ┃", README)
