"""The page's HTTP, with a session on the disk or in memory."""

import re
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.errors import DiskError, OrpoError
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.server.app import STATIC
from orpo_mlx.judging.votes import effective_votes, load_votes
from tests.judging.server.fake import answer, shown
from tests.judging.server.pages import (
    body,
    client_of,
    fake_client,
    item_of,
    opened,
    verdict_answers,
)

# --- what is sent ---


def test_the_page_and_what_it_loads_are_sent_as_they_are() -> None:
    client, _, _ = fake_client()
    for path, name, kind in [
        ("/", "page.html", "text/html; charset=utf-8"),
        ("/app.js", "app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    ]:
        response = client.get(path)
        assert (response.content, response.headers["content-type"]) == (
            (STATIC / name).read_bytes(),
            kind,
        )


def test_the_page_loads_only_what_is_served_and_its_policy_allows() -> None:
    client, _, _ = fake_client()
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    scripts = "".join(file.read_text(encoding="utf-8") for file in STATIC.glob("*.js"))
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r'from "\.(/[^"]+)"', scripts)
    assert set(loaded) == {"/app.js", "/style.css", "/icon.svg", "/server.js", "/view.js"}
    assert all(client.get(path).status_code == 200 for path in loaded)
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|javascript:", page)
    assert not re.search(r"\beval\(|new Function|\.style\.|setAttribute\(\"(style|on)", scripts)


def test_an_item_has_prompt_and_answers_as_html_and_nothing_of_who_answered() -> None:
    item = shown(
        0,
        messages=[
            {"role": "system", "content": "Be *brief*."},
            {"role": "user", "content": [{"type": "text", "text": "What is 2+2? <b>"}]},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
        ],
        tools=[{"type": "function", "function": {"name": "add"}}],
        first=answer(0, "# Four\n\n<script>1</script>", thought="2+2 is `4`"),
        second=answer(1, "five", finish="length"),
    )
    state = item_of(fake_client(item)[0])
    prompt = state["item"].pop("prompt")
    assert [message["role"] for message in prompt] == ["tools", "system", "user", "assistant"]
    assert prompt[1]["html"] == "<p>Be <em>brief</em>.</p>\n"
    assert prompt[2]["html"] == "<p>What is 2+2? &lt;b&gt;</p>\n"
    assert all("add" in prompt[n]["html"] for n in (0, 3))
    assert state == {
        "phase": "item",
        "item": {
            "id": "item-0",
            "answers": [
                {
                    "html": '<p class="h1">Four</p>\n<p>&lt;script&gt;1&lt;/script&gt;</p>\n',
                    "thought_html": "<p>2+2 is <code>4</code></p>\n",
                    "text": "# Four\n\n<script>1</script>",
                    "cut": False,
                },
                {"html": "<p>five</p>\n", "thought_html": "", "text": "five", "cut": True},
            ],
        },
        "done": 0,
        "total": 1,
        "can_undo": False,
        "result": None,
    }


def test_the_start_has_the_guidelines_as_html_and_who_has_judged() -> None:
    client, session, _ = fake_client()
    session.guidelines = "Be **fair** <b>"
    client.post("/api/vote", json=body("item-0"))
    assert client.get("/api/start").json() == {
        "purpose": "pairs",
        "folder": "judged",
        "judge": "you",
        "judges": ["ann"],
        "notes": [],
        "guidelines_html": "<p>Be <strong>fair</strong> &lt;b&gt;</p>\n",
    }


# --- votes ---


def test_votes_are_on_the_disk_before_the_next_item_is_sent(tmp_path: Path) -> None:
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client, folder = client_of(page), page._session.folder
        first = item_of(client)["item"]["id"]
        edit = {"of": "second", "text": "Better."}
        state = client.post(
            "/api/vote", json=body(first, choice="both_bad", edit=edit, note=" so so ")
        ).json()
        (vote,) = load_votes(folder / "votes.jsonl")
        assert (vote.judge, vote.item, vote.choice, vote.note) == (
            "ann",
            first,
            "both_bad",
            "so so",
        )
        assert vote.edit is not None
        assert (vote.edit.of, vote.edit.text) == (vote.second, "Better.")
        assert state["item"]["id"] != first
        assert (state["done"], state["total"], state["can_undo"]) == (1, 4, True)


def test_a_double_click_and_a_second_tab_are_one_vote(tmp_path: Path) -> None:
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client, folder = client_of(page), page._session.folder
        first = item_of(client)["item"]["id"]
        states = [
            client.post("/api/vote", json=vote).json()
            for vote in (body(first), body(first), body(first, vote="other-tab", choice="second"))
        ]
        assert states[0] == states[1] == states[2]
        assert [vote.choice for vote in load_votes(folder / "votes.jsonl")] == ["first"]


def test_undo_shows_the_item_again_and_a_restart_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client = client_of(page)
        first = item_of(client)
        second = client.post("/api/vote", json=body(first["item"]["id"])).json()
        assert client.post("/api/undo", json={"judge": "ann"}).json() == first
        client.post("/api/vote", json=body(first["item"]["id"], vote="again", choice="tie"))
    with opened(tmp_path / "s", [], purpose="verdict") as page:
        assert item_of(client_of(page)) == second
        votes = effective_votes(load_votes(page._session.folder / "votes.jsonl"))
        assert [vote.choice for vote in votes] == ["tie"]


def test_judges_are_apart(tmp_path: Path) -> None:
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client = client_of(page)
        first = item_of(client)["item"]["id"]
        client.post("/api/vote", json=body(first, judge=" ann  lee "))
        assert item_of(client, "ann lee")["done"] == 1
        assert item_of(client, "bo")["item"]["id"] == first


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"choice": "third"}, "choice"),
        ({"vote": ""}, "vote"),
        ({"edit": {"of": "third", "text": "x"}}, "edit.of"),
        ({"note": "x" * 10_001}, "note"),
        ({"first": "some-id"}, "first"),
    ],
)
def test_what_no_page_sends_is_refused_and_named(changes: dict[str, Any], named: str) -> None:
    client, session, _ = fake_client()
    response = client.post("/api/vote", json=body("item-0", **changes))
    assert (response.status_code, session.votes) == (400, {})
    assert response.json() == {"error": f"This cannot be read: {named}."}


@pytest.mark.parametrize("name", ["  ", "x" * 61, "a\x00b", "\u200b", "a\u202eb"])
def test_a_name_that_cannot_be_kept_is_refused_for_good(tmp_path: Path, name: str) -> None:
    """With 503 the page would send it again for ever."""
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client = client_of(page)
        responses = [
            client.get("/api/item", params={"judge": name}),
            client.post("/api/vote", json=body(item_of(client)["item"]["id"], judge=name)),
            client.post("/api/undo", json={"judge": name}),
        ]
        for response in responses:
            assert response.status_code == 400
            assert response.json()["error"].startswith("A judge's name must have 1 to 60 printable")
        assert page._session.votes == []


@pytest.mark.parametrize("text", [" \n", "\x1c", "\u2003"])
def test_an_edit_without_a_text_is_refused_for_good(tmp_path: Path, text: str) -> None:
    with opened(tmp_path / "s", verdict_answers(count=4), purpose="verdict") as page:
        client = client_of(page)
        sent = body(item_of(client)["item"]["id"], edit={"of": "first", "text": text})
        response = client.post("/api/vote", json=sent)
        assert (response.status_code, response.json()) == (
            400,
            {"error": "An edit must have a text."},
        )


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"judge": "ann"}', b"[1]", b"[" * 100_000, b"\xff"]
)
def test_a_body_that_is_not_a_vote_is_refused(content: bytes) -> None:
    client, session, _ = fake_client()
    headers = {"Content-Type": "application/json"}
    response = client.post("/api/vote", content=content, headers=headers)
    assert (response.status_code, session.votes) == (400, {})


def test_an_item_of_another_session_is_refused() -> None:
    response = fake_client()[0].post("/api/vote", json=body("item-77"))
    assert (response.status_code, response.json()) == (
        400,
        {"error": "There is no such item in this session."},
    )


def test_a_vote_that_cannot_be_kept_is_answered_so_that_the_page_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, session, _ = fake_client()

    def full(*_: Any, **__: Any) -> None:
        raise DiskError("votes.jsonl cannot be written: the disk is full.")

    monkeypatch.setattr(session, "vote", full)
    response = client.post("/api/vote", json=body("item-0"))
    assert (response.status_code, response.json()) == (
        503,
        {"error": "votes.jsonl cannot be written: the disk is full."},
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/vote", 405),
        ("PUT", "/api/vote", 405),
        ("DELETE", "/api/item", 405),
        ("POST", "/api/item", 405),
        ("POST", "/", 405),
        ("GET", "/votes.jsonl", 404),
        ("GET", "/../app.py", 404),
        ("GET", "/page.html", 404),
        ("GET", "/api/item", 400),  # without a judge
    ],
)
def test_other_methods_and_paths_are_refused(method: str, path: str, status: int) -> None:
    assert fake_client()[0].request(method, path, json={}).status_code == status


# --- the end ---


def test_after_the_end_no_vote_counts_and_the_result_is_waited_for() -> None:
    client, session, page = fake_client()
    client.post("/api/vote", json=body("item-0"))
    ended = client.post("/api/end", json={"judge": "ann"}).json()
    assert ended == {
        "phase": "ended", "item": None, "done": 1, "total": 3, "can_undo": False, "result": None,
    }  # fmt: skip
    assert session.ended
    assert page.over.is_set()
    assert client.post("/api/vote", json=body("item-1")).json() == ended
    assert client.post("/api/undo", json={"judge": "ann"}).json() == ended
    assert len(session.votes["ann"]) == 1
    assert not page.fetched.is_set()
    page.show_result(SessionOutcome(["It is better."], {"n": 1}, files=[Path("a/verdict.html")]))
    result = {"sentences": ["It is better."], "files": ["a/verdict.html"], "failed": False}
    assert item_of(client)["result"] == result
    assert page.fetched.is_set()


def test_why_there_is_no_result_is_shown() -> None:
    client, _, page = fake_client()
    client.post("/api/end", json={"judge": "ann"})
    page.show_failure(OrpoError("verdict.json cannot be written."))
    sentences = ["verdict.json cannot be written."]
    assert item_of(client)["result"] == {"sentences": sentences, "files": [], "failed": True}


def test_a_judge_who_has_done_all_is_asked_to_end_and_the_others_go_on() -> None:
    client, _, _ = fake_client()
    for number in range(3):
        state = client.post("/api/vote", json=body(f"item-{number}")).json()
    assert (state["phase"], state["item"], state["can_undo"]) == ("done", None, True)
    assert item_of(client, "bo")["phase"] == "item"
