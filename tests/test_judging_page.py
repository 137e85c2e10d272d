"""docs/judging.md: its commands work as shown, in that order and in one folder, without a person.

A script votes through the page's own endpoints, and types what is said in a chat. The commands that
the README shows too run in test_readme_commands.py.
"""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.judging.power import what_is_shown
from orpo_mlx.judging.verdict import Share
from tests import tiny
from tests.loops.judge_by_rule import run_judged
from tests.test_readme import README
from tests.test_readme_commands import commands, longer_text

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
OF_README = [shlex.split(line, comments=True) for line in commands(README)]
LINES = [line for line in commands(PAGE) if shlex.split(line, comments=True) not in OF_README]
# Two answers may be alike, or one be empty: then there is no vote, or no pair of it.
TYPED = "my card is lost\n/both\n" + "and my phone\n/1\n/edit\n/new\n" * 12


def test_the_sentences_are_those_of_a_verdict() -> None:
    text = " ".join(PAGE.split())
    assert f"You preferred the adapter in {Share(31, 44).text}; 9 ties" in text
    few = Share(24, 44).text.replace("decided prompts ", "")
    assert f"`{few}: too few to say. {what_is_shown(44)}`" in text


def test_the_keys_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (`.*?) \| ", PAGE.split("## What you see")[1], re.MULTILINE)
    keys = {key for row in rows for key in re.findall("`(.)`", row)}
    html = (ROOT / "orpo_mlx/judging/server/static/page.html").read_text(encoding="utf-8")
    assert keys == set(re.findall(r"<kbd>(.)</kbd>", html.split('<dl class="keys">')[1]))


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


@pytest.mark.long
@pytest.mark.touchy
def test_every_command_works_as_shown(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    for folder in (work, home):
        folder.mkdir()
    save_files(work)
    for line in LINES:
        shell = ["bash", "-e", "-c", line]
        done = run_judged(shell, work, longer_text, environment(home), TYPED)
        assert done.returncode == 0, f"$ {line}\n{done.stderr[-3000:]}"
    assert [line.split()[1] for line in LINES] == [
        "sample", "judge", "train", "sample", "judge", "judge", "chat", "judge",
    ]  # fmt: skip
    assert (work / "judged/verdict/verdict.html").is_file()
    assert load_pairs(work / "chats/manners/pairs.jsonl")
