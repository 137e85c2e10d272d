"""The page of a verdict in a real browser: free of what axe finds, as wide as a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.judging.server.browser import chromium
from tests.judging.server.test_accessible import faults_of
from tests.judging.test_verdict_page import evil_page

pytestmark = pytest.mark.long

OUTCOMES = ["adapter"] * 16 + ["base"] * 4 + ["tie", "tie", "bad", "skip"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1_100])
def test_the_page_of_a_verdict_is_accessible_and_fits(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    (tmp_path / "verdict.html").write_text(evil_page(OUTCOMES), encoding="utf-8")
    viewport = {"width": width, "height": 800}
    with browser.new_page(viewport=viewport, color_scheme=scheme) as page:  # type: ignore[arg-type]
        requests, dialogs = list[str](), list[str]()
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: dialogs.append(dialog.message))
        page.goto((tmp_path / "verdict.html").as_uri())
        assert faults_of(page) == []
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert faults_of(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert len(requests) == 1  # the page itself
        assert dialogs == []
