"""The page in a real browser: votes by keys, judges, repeats, edits, what goes wrong."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.judging.answers import SampledAnswer
from orpo_mlx.judging.votes import effective_votes, load_votes
from tests.judging.server.browser import Judge, chromium, served
from tests.judging.server.fake import answer
from tests.judging.server.test_markup import HOSTILE

pytestmark = pytest.mark.long

PROMPTS = 24  # the fewest of which some are shown again, eight
ITEMS = PROMPTS + 8
KEYS = {"first": "1", "second": "2", "tie": "t", "both_bad": "b", "skip": "s"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def two_answers(texts: dict[int, tuple[str, str]]) -> list[SampledAnswer]:
    """Two answers of one model to each prompt."""
    return [
        answer(n, text, id=f"{number}-{n}", prompt=f"Prompt {number}")
        for number, both in texts.items()
        for n, text in enumerate(both)
    ]


def steps_and_prose(count: int) -> list[SampledAnswer]:
    return two_answers(
        {n: (f"Steps {n}: do this.", f"Prose {n}, at length.") for n in range(count)}
    )


def number_of(judge: Judge) -> int:
    return int(judge.prompt.split()[1])


def wanted(judge: Judge, number: int) -> str:
    """Steps are preferred, but of some prompts they are equal, both bad or not to be judged."""
    side = "first" if judge.texts[0].startswith("Steps") else "second"
    return {3: "tie", 4: "both_bad", 5: "skip"}.get(number % 6, side)


def other(side: str) -> str:
    return "second" if side == "first" else "first"


@dataclass
class Given:
    """What a judge did, by the numbers of the prompts."""

    votes: dict[int, str] = field(default_factory=dict)  # the first ones
    contradicted: list[int] = field(default_factory=list)  # by their repeats
    edits: list[tuple[int, str]] = field(default_factory=list)  # and the text that was edited


def test_votes_by_keys_of_two_judges_come_out_as_pairs(browser: Browser, tmp_path: Path) -> None:
    """With a reload, an undo, an edit, and repeats, one of which contradicts its first vote."""
    given = Given()
    with served(tmp_path, steps_and_prose(PROMPTS), seed=3) as page:
        ann = Judge.at(browser, page.link)
        ann.begin("Ann")
        for done in range(ITEMS):
            assert ann.count == f"Item {done + 1} of {ITEMS}"
            vote_as_wanted(ann, done, given)
        bo = judge_some(browser, page.link, given.contradicted)
        assert ann.phase == "done"
        ann.page.click("#finish")
        result = ann.result()
    assert len(given.votes) == PROMPTS
    assert len(given.edits) == len(given.contradicted) == 1
    assert set(bo.values()) == {"steps", "prose", "tie"}
    pairs = load_pairs(page.folder / "pairs.jsonl")
    assert {
        (p.messages[0]["content"], p.chosen["content"], p.rejected["content"], p.weight)
        for p in pairs
    } == rows_of(given, bo)
    assert f"{len(pairs)} pairs from" in result
    assert str(page.folder / "pairs.jsonl") in result
    assert ann.faults == []


def vote_as_wanted(judge: Judge, done: int, given: Given) -> None:
    """Vote on the next item; now and then with a reload, an undo, an edit, another mind."""
    number = number_of(judge)
    choice = wanted(judge, number)
    if done == 7:
        reload_in_the_middle(judge)
    if done == 9:
        vote_and_undo(judge, KEYS[other(choice)])
    is_repeat = number in given.votes
    if is_repeat and not given.contradicted and number % 6 < 3:
        given.contradicted.append(number)
        choice = other(choice)
    if not is_repeat and number % 6 == 0 and not given.edits:
        given.edits.append((number, edit(judge, number, choice)))
    else:
        judge.press(KEYS[choice])
    given.votes.setdefault(number, choice)


def rows_of(given: Given, bo: dict[int, str]) -> set[tuple[str, str, str, float]]:
    """Prompt, chosen, rejected and weight of what Ann gave, whom Bo agreed with or not.

    One vote each way is none; one for and a tie is half.
    """
    weights = {None: 1.0, "steps": 1.0, "tie": 0.5}
    return {
        (f"Prompt {n}", f"Steps {n}: do this.", f"Prose {n}, at length.", weights[bo.get(n)])
        for n in given.votes
        if n % 6 < 3 and n not in given.contradicted and bo.get(n) != "prose"
    } | {(f"Prompt {n}", f"Mine of {n}.", text, 1.0) for n, text in given.edits}


def reload_in_the_middle(judge: Judge) -> None:
    before = judge.count, judge.prompt, judge.texts
    judge.page.reload()
    judge.ready()
    assert (judge.count, judge.prompt, judge.texts) == before


def vote_and_undo(judge: Judge, key: str) -> None:
    before = judge.count, judge.prompt, judge.texts
    judge.press(key)
    assert (judge.count, judge.prompt) != before[:2]
    judge.press("u")
    assert (judge.count, judge.prompt, judge.texts) == before
    assert judge.status.startswith("Took your last vote back. Item")


def edit(judge: Judge, number: int, side: str) -> str:
    """Improve the answer on that side by keys alone; the text that it had."""
    text = judge.texts[0 if side == "first" else 1]
    judge.page.keyboard.press("e")
    judge.page.keyboard.press(KEYS[side])
    box = judge.page.locator(f"#{side} textarea")
    assert box.input_value() == text
    judge.page.keyboard.press("Control+Enter")  # unchanged: it is not saved
    assert "Change the text first" in judge.page.inner_text(f"#{side} .fault")
    judge.page.keyboard.press("Escape")
    assert not box.is_visible()
    judge.page.keyboard.press("e")
    judge.page.keyboard.press(KEYS[side])
    judge.page.keyboard.press("Control+a")
    judge.page.keyboard.type(f"Mine of {number}.")
    judge.press("Control+Enter")
    assert judge.status.startswith("Saved with your version.")
    return text


def judge_some(browser: Browser, link: str, contradicted: list[int]) -> dict[int, str]:
    """A second judge votes by buttons, once each way, and leaves; what was preferred by prompt."""
    bo = Judge.at(browser, link)
    bo.begin("Bo")
    assert bo.count == f"Item 1 of {ITEMS}"
    chosen = dict[int, str]()
    ways = ["steps", "prose", "tie"]
    while ways:
        number = number_of(bo)
        steps = "first" if bo.texts[0].startswith("Steps") else "second"
        if number % 6 < 3 and number not in contradicted:
            chosen[number] = ways.pop()
            choice = {"steps": steps, "prose": other(steps), "tie": "tie"}[chosen[number]]
        else:
            choice = "skip"
        bo.page.dblclick(f"[data-choice={choice}]")  # as one vote
        bo.ready()
    assert bo.faults == []
    return chosen


def test_what_a_model_writes_is_text_in_the_page(browser: Browser, tmp_path: Path) -> None:
    texts = {n: (f"{text}\n\nleft", f"right\n\n{text}") for n, text in enumerate(HOSTILE)}
    requests = list[str]()
    answers = [a.model_copy(update={"thought": a.text}) for a in two_answers(texts)]
    with served(tmp_path, answers) as page:
        judge = Judge.at(browser, page.link)
        judge.page.on("request", lambda request: requests.append(request.url))
        judge.page.on("dialog", lambda dialog: requests.append(dialog.message))
        judge.begin("Ann")
        shown = set[str]()
        while judge.phase == "item":
            shown.add(judge.prompt)
            tags = judge.page.eval_on_selector_all(
                "#item .text *", "nodes => nodes.map(node => node.localName)"
            )
            assert not {"script", "style", "img", "a", "svg", "iframe", "form", "b"} & set(tags)
            handlers = (
                "nodes => nodes.some(n => [...n.attributes].some(a => /^on|^style/.test(a.name)))"
            )
            assert not judge.page.eval_on_selector_all("#item .text *", handlers)
            judge.press("1")
        judge.page.click("#finish")
        judge.result()
    assert len(shown) == len(HOSTILE)
    assert all(url.startswith(page.link.split("?")[0]) for url in requests)
    assert judge.faults == []


def test_a_vote_that_cannot_be_sent_is_kept_and_sent_again(
    browser: Browser, tmp_path: Path
) -> None:
    with served(tmp_path, steps_and_prose(3)) as page:
        judge = Judge.at(browser, page.link)
        judge.begin("Ann")
        item = judge.page.evaluate("document.querySelector('#first').dataset.item")
        judge.page.route("**/api/vote", lambda route: route.abort())
        judge.page.keyboard.press("2")
        judge.page.wait_for_selector("#trouble:not([hidden])")
        assert "Your vote is kept in this tab" in judge.page.inner_text("#trouble")
        judge.page.keyboard.press("1")  # waits for the one before, and counts for nothing
        assert not load_votes(page.folder / "votes.jsonl")
        judge.page.unroute("**/api/vote")
        judge.page.reload()  # the tab keeps it over a reload, too
        judge.ready()
        assert judge.count == "Item 2 of 3"
        assert not judge.page.is_visible("#trouble")
        (vote,) = load_votes(page.folder / "votes.jsonl")
        assert (vote.item, vote.choice) == (item, "second")
        judge.page.route("**/api/vote", lose_answer, times=1)
        judge.page.keyboard.press("1")
        judge.ready()
        assert judge.count == "Item 3 of 3"
        judge.end()
    assert [vote.choice for vote in load_votes(page.folder / "votes.jsonl")] == ["second", "first"]


def lose_answer(route: Route) -> None:
    """The server has the vote, and the page does not know."""
    route.fetch()
    route.abort()


def test_keys_do_nothing_while_one_types_or_where_they_are_off(
    browser: Browser, tmp_path: Path
) -> None:
    with served(tmp_path, steps_and_prose(3)) as page:
        judge = Judge.at(browser, page.link)
        judge.begin("12tbs")
        assert judge.page.inner_text("#who-name") == "12tbs"
        judge.page.keyboard.press("n")
        judge.page.keyboard.type("12tbsue?")
        judge.page.keyboard.press("Enter")
        for key in ("Control+1", "Alt+2", "Meta+b"):
            judge.page.keyboard.press(key)
        judge.page.keyboard.press("?")
        for key in ("1", "t"):
            judge.page.keyboard.press(key)
        judge.page.uncheck("#keys-on")
        judge.page.keyboard.press("Escape")
        judge.page.keyboard.press("1")
        assert judge.count == "Item 1 of 3"
        judge.page.click("[data-choice=tie]")
        judge.ready()
        (vote,) = load_votes(page.folder / "votes.jsonl")
        assert (vote.judge, vote.choice, vote.note) == ("12tbs", "tie", "12tbsue?")
        judge.page.keyboard.press("?")  # the buttons remain
        assert not judge.page.is_visible("#help")
        judge.page.click("#end-button")
        confirm = judge.page.inner_text("#confirm")
        assert "You have judged 1 of 3." in confirm
        judge.page.click("#confirm-no")
        assert judge.phase == "item"
        judge.end()


def test_pages_of_others_cannot_vote_read_or_frame(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, steps_and_prose(2)) as page:
        judge = Judge.at(browser, page.link)
        judge.begin("Ann")
        item = judge.page.evaluate("document.querySelector('#first').dataset.item")
        base = re.sub(r"/\?.*", "", page.link)
        other_page = judge.page.context.new_page()  # with the judge's cookies
        # Same site, another port: SameSite alone would send the cookie along.
        for origin in ("http://127.0.0.1:4321", "http://evil.example"):
            other_page.route(f"{origin}/", serve_something)
            other_page.goto(f"{origin}/")
            sent, *others = other_page.evaluate(ATTACKS, [base, item])
            assert sent in ("opaque", "refused")  # by us, or by the browser before us
            assert others == ["refused", "refused"]
            frame = other_page.evaluate_handle(FRAME, base).as_element().content_frame()
            assert "Which answer" not in frame.content()
        response = other_page.goto(page.link.replace("127.0.0.1", "evil.example"))
        assert response is not None
        assert response.status == 400
        other_page.close()
        judge.press("2")
        judge.end()
    (vote,) = effective_votes(load_votes(page.folder / "votes.jsonl"))
    assert (vote.item, vote.choice) == (item, "second")  # nobody had voted on it


def serve_something(route: Route) -> None:
    route.fulfill(body="<h1>Hi</h1>", content_type="text/html")


ATTACKS = """async ([base, item]) => {
  const body = JSON.stringify({vote: "x", judge: "Ann", item, choice: "first"});
  const sent = {method: "POST", credentials: "include", body};
  const headers = {"Content-Type": "application/json"};
  const tried = [
    fetch(`${base}/api/vote`, {...sent, mode: "no-cors"}),
    fetch(`${base}/api/vote`, {...sent, headers}),
    fetch(`${base}/api/item?judge=Ann`, {credentials: "include"}),
  ];
  return Promise.all(tried.map((one) => one.then((r) => r.type, () => "refused")));
}"""
FRAME = """base => new Promise((resolve) => {
  const frame = document.createElement("iframe");
  frame.onload = () => resolve(frame);
  frame.src = base;
  document.body.append(frame);
})"""


def test_a_name_that_cannot_be_kept_is_asked_for_again(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path, steps_and_prose(2)) as page:
        ann = Judge.at(browser, page.link)
        ann.page.fill("#name", "a\u200bb")
        ann.page.keyboard.press("Enter")
        ann.page.wait_for_selector("#trouble:not([hidden])")
        assert "printable characters" in ann.page.inner_text("#trouble")
        assert ann.phase == "start"
        ann.page.reload()
        ann.page.wait_for_selector("#start:not([hidden])")
        ann.begin("Ann")
        assert (ann.count, ann.page.is_visible("#trouble")) == ("Item 1 of 2", False)
        ann.press("1")
        ann.end()
