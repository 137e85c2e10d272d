"""Terminals, pipes and files that commands print to, whatever becomes of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.streams import printable
from tests import tiny
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;pwned\x07\x1b[2J\u202e"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202e]")


def run(*arguments: object, folder: Path, **how: Any) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    command = [sys.executable, "-m", "orpo_mlx", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, check=False, **streams)


@pytest.mark.touchy
def test_a_full_disk_behind_standard_output_is_one_message(tmp_path: Path) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    with Path("/dev/full").open("wb") as full:
        done = run("data", "stats", pairs, "--json", folder=tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1:] == [
        b"Error: Standard output cannot be written: the disk is full."
    ]
    assert b"Traceback" not in done.stderr


@pytest.mark.touchy
def test_a_full_disk_behind_standard_error_changes_nothing(tmp_path: Path) -> None:
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    with Path("/dev/full").open("wb") as full:
        done = run("data", "convert", pairs, "--output", "o.jsonl", folder=tmp_path, stderr=full)
    assert (done.returncode, done.stdout) == (0, b"o.jsonl: 4 pairs\n")


@pytest.mark.touchy
def test_letters_that_ascii_lacks_are_written_out(tmp_path: Path) -> None:
    row = {"prompt": "h\u00e9  \u00b7", "chosen": "\u4f60\u597d", "rejected": "no"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = run("data", "preview", "p.jsonl", folder=tmp_path, env=ascii_only)
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr
    assert b"\\u4f60" in done.stdout


@pytest.mark.touchy
def test_a_current_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = f"rmdir ../gone; exec {sys.executable} -m orpo_mlx data stats pairs.jsonl"
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path / "gone",
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stderr == b"Error: The current folder was removed. Change to another one: cd ~\n"


def hostile(folder: Path) -> list[Path]:
    """Files whose columns, values and names would write a terminal's title."""
    columns = folder / "columns.jsonl"
    columns.write_text(json.dumps({f"que{EVIL}stion": "a", f"x{EVIL}": f"b{EVIL}"}))
    values = folder / "values.jsonl"
    values.write_text(json.dumps({"prompt": f"a{EVIL}", "chosen": f"b{EVIL}", "rejected": 7}))
    header = folder / "header.csv"
    header.write_text(f"prompt,cho{EVIL}sen,rejected\na,b,c\n")
    name = tiny.save_pairs(folder / f"na{EVIL}me.jsonl", 3)
    texts = folder / "texts.jsonl"
    texts.write_text(json.dumps({"prompt": f"a{EVIL}", "chosen": f"b{EVIL}", "rejected": EVIL}))
    return [columns, values, header, name, texts]


@pytest.mark.parametrize("command", ["preview", "stats", "check", "convert"])
def test_no_control_character_of_a_file_reaches_the_terminal(
    command: str, cli: Cli, tmp_path: Path
) -> None:
    more = ("--output", "o.jsonl", "--overwrite") if command == "convert" else ()
    for file in hostile(tmp_path):
        result = cli("data", command, file, *more)
        shown = result.out + result.err
        assert shown
        assert not RAW.findall(shown), (file, RAW.search(shown))


def test_settings_and_names_are_shown_without_control_characters(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({f"be{EVIL}ta": 1, "data": [f"n{EVIL}.jsonl"]}))
    for arguments in (
        ("train", "--config", "c.yaml", "--model", f"m{EVIL}", "--output", f"o{EVIL}"),
        ("fuse", "--adapter", f"a{EVIL}", "--output", "out"),
        (f"tra{EVIL}in",),
        ("train", f"--be{EVIL}ta", "1"),
    ):
        result = cli(*arguments)
        assert result.status == 1
        assert not RAW.findall(result.out + result.err), arguments


def test_lines_and_tabs_stay() -> None:
    assert printable("a\tb\nc\x1b[0m\x07 \u202e\u00e9") == "a\tb\nc\\x1b[0m\\x07 \\u202e\u00e9"


def test_home_in_a_file_of_settings_is_the_home_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    (tmp_path / "c.yaml").write_text("output: ~/deep/o.jsonl\n")
    for arguments in (("--output", "~/o.jsonl"), ("--output=~/p.jsonl",)):
        assert cli("data", "convert", pairs, *arguments).status == 0
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["o.jsonl", "p.jsonl"]
    from orpo_mlx.cli.settings import build_config, load_config_file
    from orpo_mlx.config.data import DataConvertConfig

    layer = load_config_file(tmp_path / "c.yaml")
    values = {**layer.values, "data": [str(pairs)]}
    config = build_config(DataConvertConfig, [layer._replace(values=values)])
    assert config.output == tmp_path / "home" / "deep" / "o.jsonl"
    assert not (tmp_path / "~").exists()
