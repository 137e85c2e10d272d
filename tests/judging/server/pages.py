"""The page's application without a server, and sessions on the disk for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.judging.answers import SampledAnswer, append_answers
from orpo_mlx.judging.results import power_notes
from orpo_mlx.judging.server.app import JudgingPage, build_app
from orpo_mlx.judging.server.security import Guard, own_hosts
from orpo_mlx.judging.session import describe_session, open_session
from tests.judging.server.fake import FakeSession, answer, shown, source

PORT, TOKEN = 4321, "token"


def client_of(page: JudgingPage) -> TestClient:
    """A browser that has followed the link."""
    guarded = Guard(build_app(page), TOKEN, PORT, own_hosts("127.0.0.1"))
    client = TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}")
    client.headers["Origin"] = f"http://127.0.0.1:{PORT}"
    client.get("/", params={"token": TOKEN})
    return client


def fake_client(*items: Any) -> tuple[TestClient, FakeSession, JudgingPage]:
    session = FakeSession(list(items or map(shown, range(3))))
    page = JudgingPage(session, "you")  # type: ignore[arg-type]
    return client_of(page), session, page


def item_of(client: TestClient, judge: str = "ann") -> dict[str, Any]:
    return dict(client.get("/api/item", params={"judge": judge}).json())


def body(item: str | None, **changes: Any) -> dict[str, Any]:
    """A vote as the page sends it."""
    vote = {"vote": f"v-{item}", "judge": "ann", "item": item, "choice": "first"}
    return vote | {"edit": None, "note": ""} | changes


def answers_of(name: str, texts: Iterable[str], **changes: Any) -> list[SampledAnswer]:
    """One answer to each of several prompts."""
    return [
        answer(0, text, id=f"{name}-{n}", prompt=f"Prompt {n}?", source=source(name), **changes)
        for n, text in enumerate(texts)
    ]


@contextmanager
def opened(folder: Path, answers: Iterable[SampledAnswer], **options: Any) -> Iterator[JudgingPage]:
    """The page of a session on the disk."""
    folder.mkdir(exist_ok=True)
    if not (file := folder / "answers.jsonl").exists():
        append_answers(file, answers)
    with open_session(JudgeConfig(answers=[file], **options), print) as session:
        yield JudgingPage(session, "you", [*describe_session(session), *power_notes(session)])


def verdict_answers(one: str = "one", other: str = "two", count: int = 24) -> list[SampledAnswer]:
    """Of two models, one of which numbers its steps, thinks, and is cut now and then."""
    texts = [f"1. Do this.\n2. Then **that**, {n} times." for n in range(count)]
    plain = [f"Just do it {n} times." for n in range(count)]
    cut = [a.model_copy(update={"finish": "length"}) for a in answers_of(other, plain)[::3]]
    others = {a.id: a for a in [*answers_of(other, plain), *cut]}
    return [*answers_of(one, texts, thought="Steps help."), *others.values()]
