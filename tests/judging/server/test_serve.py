"""The page over a socket, as a browser meets it."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.server import serve
from orpo_mlx.judging.server.serve import Links, judge_on_page, listening
from tests.alarm import HANG_SECONDS
from tests.judging.server.fake import FakeSession, shown
from tests.judging.server.visitor import Visitor

OUTCOME = SessionOutcome(["Better."], {"n": 1}, files=[Path("pairs.jsonl")])


@pytest.fixture(autouse=True)
def no_other_tabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else waits for the result."""
    monkeypatch.setattr(serve, "OTHERS_SECONDS", 0.0)


def judged(
    visit: Callable[[Links], Any],
    outcome: Callable[[], SessionOutcome] = lambda: OUTCOME,
    **options: Any,
) -> tuple[SessionOutcome, Any]:
    """What a session comes to that is judged by `visit` in a thread, and what that returned."""
    results = list[Any]()
    threads = list[threading.Thread]()

    def start(links: Links) -> None:
        threads.append(threading.Thread(target=lambda: results.append(visit(links)), daemon=True))
        threads[0].start()

    config = JudgeConfig(answers=[Path("a")], **options)
    session: Any = FakeSession([shown(n) for n in range(3)])
    result = judge_on_page(session, config, notes=["Three items."], outcome=outcome, on_start=start)
    threads[0].join(HANG_SECONDS)
    return result, results[0]


def vote_and_end(links: Links) -> tuple[int, dict[str, Any]]:
    visitor = Visitor(links.local)
    return visitor.vote_all(), visitor.end()


def test_a_session_is_judged_to_its_end_and_both_sides_get_its_result() -> None:
    result, (votes, shown_result) = judged(vote_and_end)
    assert (result, votes) == (OUTCOME, 3)
    assert shown_result == {"sentences": ["Better."], "files": ["pairs.jsonl"], "failed": False}


def test_each_start_has_a_random_token_of_its_own_on_a_port_of_this_machine_alone() -> None:
    links = list[Links]()
    for _ in range(2):
        judged(lambda new: (links.append(new), vote_and_end(new)))
    tokens = {parse_qs(urlsplit(link.local).query)["token"][0] for link in links}
    assert len(tokens) == 2
    assert all(len(token) == 32 for token in tokens)  # 24 bytes in base64
    assert all(urlsplit(link.local).hostname == "127.0.0.1" for link in links)
    assert all(link.network == [] for link in links)


def test_the_servers_own_answers_are_guarded_too() -> None:
    """By name and time nothing is known of the server; a Host that is not its own gets 400."""

    def visit(links: Links) -> list[httpx2.Response]:
        visitor = Visitor(links.local)
        answers = [
            visitor.client.get("/"),
            visitor.client.get("/", headers={"Host": "evil.example"}),
            visitor.client.post("/api/end", json={}, headers={"Origin": "null"}),
            httpx2.get(links.local.replace("127.0.0.1", "localhost"), trust_env=False),
        ]
        visitor.end()
        return answers

    _, answers = judged(visit)
    assert [answer.status_code for answer in answers] == [200, 400, 403, 303]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert not {"server", "date", "access-control-allow-origin"} & set(answer.headers)


def test_an_outcome_that_fails_is_shown_on_the_page_and_raised() -> None:
    seen = list[dict[str, Any]]()

    def fail() -> SessionOutcome:
        raise OrpoError("pairs.jsonl cannot be written.")

    with pytest.raises(OrpoError, match="cannot be written"):
        judged(lambda links: seen.append(Visitor(links.local).end()), fail)
    assert seen[0]["failed"]


def test_a_page_that_was_closed_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FETCH_SECONDS", 0.0)

    def visit(links: Links) -> None:
        visitor = Visitor(links.local)
        visitor.post("end")
        visitor.client.close()

    result, _ = judged(visit)
    assert result == OUTCOME


def test_in_a_network_there_is_a_link_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "own_addresses", lambda: ["192.168.1.5"])
    links = list[Links]()
    judged(lambda new: (links.append(new), vote_and_end(new)), host="0.0.0.0")
    (link,) = links
    assert link.network == [link.local.replace("127.0.0.1", "192.168.1.5")]


def test_addresses_that_cannot_be_used_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        with pytest.raises(OrpoError, match=f"--host 127.0.0.1 --port {port}: .*Address already"):
            listening("127.0.0.1", port).__enter__()
    with pytest.raises(OrpoError, match=r"--host 192\.0\.2\.1: the page cannot be served there"):
        listening("192.0.2.1", 0).__enter__()


def test_an_ipv6_address_is_bracketed() -> None:
    assert serve._links("::1", 80, "t") == Links("http://[::1]:80/?token=t", [])
    assert serve._links("10.0.0.7", 80, "t").network == ["http://10.0.0.7:80/?token=t"]
