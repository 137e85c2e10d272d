"""A judge who votes by a rule, through the page alone: it sees what the page sends."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.alarm import HANG_SECONDS
from tests.judging.server.visitor import Visitor

LINK = re.compile(r"http://127\.0\.0\.1:\d+/\?token=\S+")
Rule = Callable[[str], bool]


def has_numbered_steps(text: str) -> bool:
    """Whether a line of it begins with `1.`"""
    return re.search(r"(?m)^\s*1[.)]", text) is not None


def vote_all(link: str, prefers: Rule) -> None:
    """Vote for the answers that keep the rule, on every item, and end the session."""
    visitor = Visitor(link, "rule")
    state = visitor.state()
    while item := state["item"]:
        first, second = (prefers(answer["text"]) for answer in item["answers"])
        choice = "tie" if first == second else "first" if first else "second"
        state = visitor.vote(item["id"], choice)
    visitor.end()


def run_loop(arguments: Sequence[Any], folder: Path, prefers: Rule) -> tuple[int, str, str]:
    """`orpo-mlx loop ARGUMENTS` in a folder, judged by a rule: status, stdout, stderr."""
    command = [sys.executable, "-m", "orpo_mlx", "loop", *map(str, arguments)]
    lines = []
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stderr:
            lines.append(line)
            if link := LINK.search(line):
                vote_all(link[0], prefers)
        out = process.stdout.read()
        status = process.wait(HANG_SECONDS)
    return status, out, "".join(lines)
