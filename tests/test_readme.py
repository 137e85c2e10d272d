"""What the README shows is true: its rows are read, its Python runs, its flags exist."""

import re
from pathlib import Path

import click
import pytest

from orpo_mlx.cli.main import COMMANDS, group
from orpo_mlx.data.pairs.load import load_pairs
from tests import tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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
        if isinstance(command, click.Group):
            command = command.get_command(context, words[0])
        assert command is not None
        known = {flag for param in command.params for flag in param.opts}
        assert {w for w in words if w.startswith("--")} <= known


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    for name in re.findall(r"^ {2}(\w+[./]\w*)", tree, re.M):
        assert (Path(__file__).parents[1] / "orpo_mlx" / name).exists(), name


def test_the_transcript_has_the_tables_of_a_run() -> None:
    assert "chosen over the brush-off (30 pairs)" in README
    assert "before" in README and "after" in README
