"""Until the session is over no byte that is sent depends on who answered."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orpo_mlx.judging.answers import AnswerSource, SampledAnswer
from orpo_mlx.judging.server import app
from tests.judging.server.pages import body, client_of, opened, verdict_answers


def whole_session(client: TestClient) -> list[tuple[int, list[tuple[str, str]], bytes]]:
    """Every response of a session that is judged to its end, with undo, two judges and a reload."""
    responses = [client.get(path) for path in ("/", "/app.js", "/style.css", "/api/start")]
    for judge in ("ann", "bo"):
        responses.append(client.get("/api/item", params={"judge": judge}))
        votes = 0
        while (item := responses[-1].json()["item"]) and (judge == "ann" or votes < 6):
            choice = ("first", "second", "tie", "both_bad", "skip")[votes % 5]
            edit = {"of": "first", "text": "Mine."} if votes == 2 else None
            sent = body(item["id"], judge=judge, choice=choice, edit=edit, vote=f"{judge}{votes}")
            responses.append(client.post("/api/vote", json=sent))
            votes += 1
            if votes in (3, 9):
                responses.append(client.post("/api/undo", json={"judge": judge}))
                responses.append(client.get("/api/item", params={"judge": judge}))
    responses.append(client.post("/api/end", json={"judge": "ann"}))
    assert responses[-1].json()["phase"] == "ended"
    assert all(response.status_code == 200 for response in responses)
    return [(r.status_code, r.headers.multi_items(), r.content) for r in responses]


def relabeled(answers: list[SampledAnswer]) -> list[SampledAnswer]:
    """The same texts, each by the other model, whose name, id and settings it gets."""
    sources = {a.source.name: a.source for a in answers}
    swap: dict[str, AnswerSource] = dict(zip(sources, reversed(sources.values()), strict=True))
    ids = {(a.source.name, a.prompt_id): a.id for a in answers}
    new = []
    for a in answers:
        other = swap[a.source.name]
        changes = {"source": other, "id": ids[other.name, a.prompt_id], "logp": -9.0, "tokens": 99}
        new.append(a.model_copy(update=changes))
    half = len(new) // 2
    return [*new[half:], *new[:half]]  # in the order of a file in which the first model is first


def test_with_the_models_exchanged_every_byte_is_the_same_until_the_end(tmp_path: Path) -> None:
    answers = [
        a.model_copy(update={"source": a.source.model_copy(update={"max_tokens": 128})})
        if a.source.name == "two"
        else a
        for a in verdict_answers()
    ]
    sent = []
    orders = {"before": answers, "after_": relabeled(answers), "upside": answers[::-1]}
    for name, own in orders.items():
        with opened(tmp_path / name, own, purpose="verdict") as page:
            responses = whole_session(client_of(page))
            folder = str(tmp_path / name).encode()
            sent.append([(s, h, c.replace(folder, b"FOLDER")) for s, h, c in responses])
    assert len(sent[0]) > 45
    assert sent[0] == sent[1] == sent[2]
    texts = b"".join(content for _, _, content in sent[0])
    assert not [
        word for word in (b"one-0", b"two-0", b'"one"', b"logp", b"temperature") if word in texts
    ]


def test_a_byte_that_shows_the_model_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail."""
    monkeypatch.setattr(app, "_answer_as_json", lambda a: {"html": a.text, "cut": a.source.name})
    answers = verdict_answers("one", "another", 6)
    first, second = [], []
    for name, own, kept in (("a", answers, first), ("b", relabeled(answers), second)):
        with opened(tmp_path / name, own, purpose="verdict") as page:
            kept += [content for _, _, content in whole_session(client_of(page))]
    assert first[5] != second[5]
