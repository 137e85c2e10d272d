"""docs/judging.md: its commands work as shown, in that order and in one folder, without a person.

A script votes through the page's own endpoints, and types what is said in a chat.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.data.pairs.load import load_pairs
from tests import tiny
from tests.judging.scripted_judge import run_judged
from tests.test_readme_commands import commands

pytestmark = [pytest.mark.long, pytest.mark.touchy]

ROOT = Path(__file__).parents[1]
LINES = commands((ROOT / "docs" / "judging.md").read_text(encoding="utf-8"))
TYPED = "my card is lost\n/both\nand my phone\n/1\n/edit\nthe router is slow\n/2\n"


def choose(item: dict[str, Any]) -> str:
    """The longer answer."""
    first, second = (len(answer["text"]) for answer in item["answers"])
    return "first" if first > second else "second" if second > first else "tie"


def save_files(folder: Path) -> None:
    """The user's own files, by the names that the page gives them."""
    tiny.save_ending_base(folder / "BASE")
    asked = [tiny.toy_pair(number)["prompt"] for number in range(22)]
    (folder / "prompts.txt").write_text("\n".join(asked[:14]), encoding="utf-8")
    (folder / "verdict.txt").write_text("\n".join(asked[14:]), encoding="utf-8")
    (folder / "guidelines.md").write_text("The *longer* one.", encoding="utf-8")


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ORPO_"))}
    return kept | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "EDITOR": "sed -i s/^/better/",
        "VISUAL": "",
        "OPENBLAS_NUM_THREADS": "1",
    }


def test_every_command_works_as_shown(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    for folder in (work, home):
        folder.mkdir()
    save_files(work)
    judged: list[dict[str, Any]] = []
    for line in LINES:
        done = run_judged(line, work, environment(home), choose, TYPED)
        assert done.status == 0, f"$ {line}\nstatus {done.status}\n{done.err[-3000:]}"
        judged += done.states
    assert {line.split()[1] for line in LINES} == {"loop", "sample", "judge", "train", "chat"}
    # The loop's two sessions, and the two by hand; what is judged again with --result is not shown.
    assert [state["phase"] for state in judged] == ["ended"] * 4
    assert len(load_pairs(work / "chats/manners/pairs.jsonl")) == 3
