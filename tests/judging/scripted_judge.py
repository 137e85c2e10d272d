"""Commands that a script judges: whenever one prints the link of a page, all is voted on there."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread, Timer
from typing import Any, NamedTuple

from tests.alarm import HANG_SECONDS
from tests.judging.server.visitor import Visitor

LINK = re.compile(r"http://127\.0\.0\.1:\d+/\?token=\S+")
Choose = Callable[[dict[str, Any]], str]  # an item as /api/item has it, to a choice


class Judged(NamedTuple):
    """A command that has ended, and what its pages showed at their ends."""

    status: int
    out: str
    err: str
    results: list[dict[str, Any]]


def prefer_longer(item: dict[str, Any]) -> str:
    """A choice."""
    first, second = (len(answer["text"]) for answer in item["answers"])
    return "first" if first > second else "second" if second > first else "tie"


def run_judged(
    line: str, folder: Path, environment: Mapping[str, str], choose: Choose, typed: str = ""
) -> Judged:
    """Run a line in bash, with `typed` as its standard input."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as out:
        given.write(typed)
        given.seek(0)
        with subprocess.Popen(
            ["bash", "-e", "-c", line],
            cwd=folder,
            env=dict(environment),
            stdin=given,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            hanging = Timer(HANG_SECONDS, process.kill)
            hanging.start()
            err = _read(process, lambda link: results.append(_judge(link, choose)))
            status = process.wait()
            hanging.cancel()
        out.seek(0)
        return Judged(status, out.read(), err, results)


def _judge(link: str, choose: Choose) -> dict[str, Any]:
    """Vote on every item, and end the session."""
    visitor = Visitor(link, "you")
    state = visitor.state()
    while state["item"]:
        state = visitor.vote(state["item"]["id"], choose(state["item"]))
    return visitor.end()


def _read(process: "subprocess.Popen[str]", judge: Callable[[str], None]) -> str:
    """All of standard error; what fails in a judge ends the process and is added."""
    lines, judges = list[str](), list[Thread]()

    def judge_page(link: str) -> None:
        try:
            judge(link)
        except Exception as error:
            lines.append(f"The judge: {error!r}\n")
            process.kill()

    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if link := LINK.search(line):
            judges.append(Thread(target=judge_page, args=[link[0]]))
            judges[-1].start()
    for thread in judges:
        thread.join()
    return "".join(lines)
