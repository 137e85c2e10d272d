"""A judge without a person: votes through the page's own endpoints, as a browser does."""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar
from pathlib import Path
from threading import Thread, Timer
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

from tests.alarm import HANG_SECONDS

LINK = re.compile(r"http://127\.0\.0\.1:\d+/\?token=\S+")
Choose = Callable[[dict[str, Any]], str]  # an item as /api/item has it, to a choice


def prefer_longer(item: dict[str, Any]) -> str:
    """A choice."""
    first, second = (len(answer["text"]) for answer in item["answers"])
    return "first" if first > second else "second" if second > first else "tie"


class ScriptedJudge:
    """One who has opened the link that a command printed."""

    def __init__(self, link: str, name: str = "you"):
        self._opener = build_opener(HTTPCookieProcessor(CookieJar()), ProxyHandler({}))
        self._opener.open(link, timeout=HANG_SECONDS).read()
        parts = urlsplit(link)
        self._origin, self._name = f"{parts.scheme}://{parts.netloc}", name

    def state(self) -> dict[str, Any]:
        """What the page shows now."""
        return self._json(Request(f"{self._origin}/api/item?judge={self._name}"))

    def vote(self, item: str, choice: str, **more: Any) -> dict[str, Any]:
        """Vote on an item, with an edit or a note."""
        return self._post("vote", vote=f"{self._name}-{item}", item=item, choice=choice, **more)

    def end(self) -> dict[str, Any]:
        """End the session, and wait for what it came to."""
        state = self._post("end")
        while state["result"] is None:
            state = self.state()
        return state

    def judge_all(self, choose: Choose) -> dict[str, Any]:
        """Vote on every item, and end the session."""
        state = self.state()
        while state["item"]:
            state = self.vote(state["item"]["id"], choose(state["item"]))
        return self.end()

    def _post(self, name: str, **values: Any) -> dict[str, Any]:
        content = json.dumps({"judge": self._name, **values}).encode()
        headers = {"Content-Type": "application/json", "Origin": self._origin}
        return self._json(Request(f"{self._origin}/api/{name}", content, headers))

    def _json(self, request: Request) -> dict[str, Any]:
        with self._opener.open(request, timeout=HANG_SECONDS) as answer:
            state: dict[str, Any] = json.load(answer)
            return state


class Done(NamedTuple):
    """A command that has ended, and what its pages showed at their ends."""

    status: int
    out: str
    err: str
    states: list[dict[str, Any]]


def run_judged(
    line: str, folder: Path, environment: Mapping[str, str], choose: Choose, typed: str = ""
) -> Done:
    """Run a line in bash; whenever it prints the link of a page, all is judged there."""
    states: list[dict[str, Any]] = []
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
            err = _read(process, lambda link: states.append(ScriptedJudge(link).judge_all(choose)))
            status = process.wait()
            hanging.cancel()
        out.seek(0)
        return Done(status, out.read(), err, states)


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
