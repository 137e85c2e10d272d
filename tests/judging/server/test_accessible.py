"""Every state of the page is free of what axe finds, by day and by night, wide and narrow."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.judging.server.browser import Judge, chromium, served
from tests.judging.server.fake import answer

pytestmark = pytest.mark.long

# Its rules for WCAG 2.0 to 2.2, A and AA, and its best practices; target sizes are off by default.
AXE = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
CODE = (
    f"# Heading\n\n```python\ndef f(x: int) -> str:  # comment\n    return 'x' * {'9' * 300}\n```"
)
TABLE = "| a | b |\n|---|--:|\n" + f"| {'wide' * 40} | 2 |\n\n> quoted\n\n1. `one`\n2. **two**"
PROMPT = [
    {"role": "system", "content": "Be brief."},
    *({"role": role, "content": "An *earlier* turn."} for role in ("user", "assistant") * 2),
    {"role": "user", "content": "And now?"},
]
GUIDELINES = "Prefer **steps**.\n\n- and facts"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def faults_of(page: Page) -> list[str]:
    """What axe finds: rule and element."""
    violations = Axe().run(page, options=AXE).response["violations"]
    return [f"{v['id']}: {node['html'][:80]}" for v in violations for node in v["nodes"]]


def open_edit(judge: Judge) -> None:
    for key in ("e", "2", "Control+Enter"):  # with the message that nothing was changed
        judge.page.keyboard.press(key)


def lose_the_server(judge: Judge) -> None:
    judge.page.route("**/api/vote", lambda route: route.abort())
    judge.page.keyboard.press("1")
    judge.page.wait_for_selector("#trouble:not([hidden])")


def find_the_server(judge: Judge) -> None:
    judge.page.unroute("**/api/vote")
    judge.ready()


# What leads from each state to the next.
STATES: dict[str, Callable[[Judge], object]] = {
    "start": lambda judge: None,
    "item": lambda judge: judge.begin("Ann"),
    "all open": lambda judge: judge.page.evaluate(
        "document.querySelectorAll('details').forEach(node => node.open = true)"
    ),
    "edit choice": lambda judge: judge.page.keyboard.press("e"),
    "edit": lambda judge: (judge.page.keyboard.press("Escape"), open_edit(judge)),
    "note": lambda judge: (judge.page.keyboard.press("Escape"), judge.page.keyboard.press("n")),
    "help": lambda judge: (judge.page.keyboard.press("Enter"), judge.page.keyboard.press("?")),
    "confirm": lambda judge: (judge.page.keyboard.press("Escape"), judge.page.click("#end-button")),
    "trouble": lambda judge: (judge.page.click("#confirm-no"), lose_the_server(judge)),
    "done": lambda judge: (find_the_server(judge), judge.press("2")),
    "end": lambda judge: (judge.page.click("#finish"), judge.result()),
}


@pytest.mark.parametrize(
    "window", ["desktop, light", "desktop, dark", "phone, light", "phone, dark"]
)
def test_axe_finds_nothing_in_any_state(browser: Browser, tmp_path: Path, window: str) -> None:
    size, scheme = window.split(", ")
    narrow = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    options: dict[str, Any] = narrow if size == "phone" else {}
    (tmp_path / "guidelines.md").write_text(GUIDELINES, encoding="utf-8")
    prompts = [PROMPT, "Short?"]
    answers = [
        answer(n, text, id=f"{text[:3]}{number}", prompt=prompt, thought="Perhaps `so`.")
        for number, prompt in enumerate(prompts)
        for n, text in enumerate((CODE, TABLE))
    ]
    faults = {}
    with served(tmp_path, answers, guidelines=tmp_path / "guidelines.md") as page:
        judge = Judge.at(
            browser, page.link, color_scheme=scheme, reduced_motion="reduce", **options
        )
        for state, reach in STATES.items():
            reach(judge)
            faults[state] = faults_of(judge.page)
            width = judge.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, f"{state} is wider than the window"
    assert faults == {state: [] for state in STATES}


def test_axe_would_find_something(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content("<button></button><p style='color:#ccc;background:#fff'>pale</p>")
    assert {"button-name", "color-contrast"} <= {f.split(":")[0] for f in faults_of(page)}


def test_every_state_is_left_by_the_keyboard_and_focus_is_seen(
    browser: Browser, tmp_path: Path
) -> None:
    """No keyboard trap: Tab comes to the end of the page and around; what has focus is visible."""
    answers = [answer(n, text, id=f"{n}") for n, text in enumerate((CODE, TABLE))]
    with served(tmp_path, answers) as page:
        judge = Judge.at(browser, page.link)
        judge.begin("Ann")
        judge.page.evaluate("document.body.focus()")
        seen = list[str]()
        for _ in range(30):
            judge.page.keyboard.press("Tab")
            seen.append(judge.page.evaluate(FOCUSED))
        controls = "#item button, .tools button, .votes button, [tabindex='0']"
        nodes = judge.page.locator(controls).locator("visible=true").all()
        assert len(set(seen)) >= sum(node.is_enabled() for node in nodes)
        assert seen.count("nothing") < 3
        assert "unseen" not in {focus.split()[-1] for focus in seen}
        judge.press("1")
        judge.page.click("#finish")


FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return "nothing";
  const box = node.getBoundingClientRect();
  const style = getComputedStyle(node);
  const at = document.elementFromPoint(box.x + box.width / 2, box.y + Math.min(box.height / 2, 20));
  const covered = at !== node && !node.contains(at) && !at?.contains(node);
  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const name = node.id || node.textContent.slice(0, 20);
  return `${node.localName} ${name} ${covered || !outlined ? "unseen" : "seen"}`;
}"""
