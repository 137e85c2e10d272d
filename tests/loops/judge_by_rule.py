"""A judge who votes by a rule, through the page alone: it sees what the page sends."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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


def run_judged(
    command: Sequence[str],
    folder: Path,
    prefers: Rule,
    environment: Mapping[str, str] | None = None,
    typed: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder; each page whose link it prints is judged by the rule.

    `typed` is its standard input.
    """
    lines = []
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as out:
        given.write(typed)
        given.seek(0)
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=given,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr
            for line in process.stderr:
                lines.append(line)
                if link := LINK.search(line):
                    vote_all(link[0], prefers)
            status = process.wait(HANG_SECONDS)
        out.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), "".join(lines))
