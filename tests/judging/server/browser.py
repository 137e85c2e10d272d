"""The system's Chromium at the page of a session, and what is read and pressed there."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.judging.answers import SampledAnswer, append_answers
from orpo_mlx.judging.results import compute_outcome
from orpo_mlx.judging.server.serve import judge_on_page
from orpo_mlx.judging.session import open_session
from tests.alarm import HANG_SECONDS

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    # A name of somebody else that leads to this machine.
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
)  # fmt: skip
# What the page waits for on purpose takes a moment here.
HURRY = "const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, Math.min(ms, 20));"
READY = "body[data-busy=false][data-unread=false]"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; the test fails where the system has none."""
    if CHROMIUM is None:
        pytest.fail("chromium is not installed. Install it with: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Served:
    """A session that is served by another thread."""

    link: str
    folder: Path


@contextmanager
def served(folder: Path, answers: list[SampledAnswer], **options: Any) -> Iterator[Served]:
    """The page of these answers; the block must end the session."""
    append_answers(folder / "answers.jsonl", answers)
    config = JudgeConfig(answers=[folder / "answers.jsonl"], **options)
    links, started = list[str](), threading.Event()

    def start(new: Any) -> None:
        links.append(new.local)
        started.set()

    def serve() -> None:
        with open_session(config, lambda event: None) as session:
            judge_on_page(
                session,
                config,
                notes=["A note before the start."],
                outcome=lambda: compute_outcome(session, config, lambda event: None),
                on_start=start,
            )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(HANG_SECONDS)
    yield Served(links[0], folder / f"judged-{config.purpose}")
    thread.join(HANG_SECONDS)
    assert not thread.is_alive(), "the session was not ended"


@dataclass
class Judge:
    """Somebody at the page, who reads and presses keys."""

    page: Page

    @classmethod
    def at(cls, browser: Browser, link: str, **options: Any) -> "Judge":
        """In a window with its own cookies; what the console reports is a failure."""
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.add_init_script(HURRY)
        page.faults = list[str]()  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.faults.append(str(error)))  # type: ignore[attr-defined]
        page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)  # type: ignore[attr-defined]
        page.goto(link)
        page.wait_for_selector("#start:not([hidden]), #item:not([hidden])")
        return cls(page)

    @property
    def faults(self) -> list[str]:
        """What the console reported as errors."""
        return list(self.page.faults)  # type: ignore[attr-defined]

    def begin(self, name: str) -> None:
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")
        self.ready()

    def ready(self) -> None:
        """Wait until votes are taken."""
        self.page.wait_for_selector(READY)

    def press(self, key: str) -> None:
        """A key that leads to another item."""
        self.page.keyboard.press(key)
        self.ready()

    @property
    def phase(self) -> str:
        return str(self.page.evaluate("document.body.dataset.phase"))

    @property
    def prompt(self) -> str:
        return self.page.inner_text("#prompt .last .text")

    @property
    def texts(self) -> tuple[str, str]:
        """The answers as they are shown, the left one first."""
        return self.page.inner_text("#first .body"), self.page.inner_text("#second .body")

    @property
    def count(self) -> str:
        return self.page.inner_text("#count")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    def end(self) -> str:
        """End the session with votes missing; the result as it is shown."""
        self.page.click("#end-button")
        self.page.click("#confirm-yes")
        return self.result()

    def result(self) -> str:
        self.page.wait_for_selector("#result .hint")
        return self.page.inner_text("#result")
