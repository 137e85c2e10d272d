"""The fake Hub knows what huggingface_hub sends, and nothing else: looked up in its sources."""

import json
import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.interop.hub.routes import HEADERS, ROUTES, Route
from tests.interop.hub.server import running_hub
from tests.interop.hub.state import TOKEN, Hub

pytestmark = pytest.mark.touchy

SOURCES = Path(huggingface_hub.__file__).parent


@pytest.fixture
def own_hub(tmp_path: Path):
    """A Hub of its own, which may refuse."""
    with running_hub(tmp_path / "hub") as hub:
        yield hub


def ask(
    hub: Hub, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(hub.url + path, data, sent, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        with error:
            text, status = error.read(), error.code
    return status, json.loads(text or "{}")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_each_route_and_field_is_in_the_librarys_source(route: Route) -> None:
    source = (SOURCES / route.source).read_text(encoding="utf-8")
    assert route.quote in source
    for name in (*route.fields, *route.query):
        assert f'"{name}"' in source or f"{name}:" in source, name


def test_each_header_is_in_the_librarys_source() -> None:
    for name, source in HEADERS.items():
        if source:
            assert name in (SOURCES / source).read_text(encoding="utf-8").lower(), name


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "why"),
    [
        ("GET", "/api/whoami", None, {}, "no such route: GET /api/whoami"),
        ("POST", "/api/whoami-v2", {}, {}, "no such route: POST /api/whoami-v2"),
        ("POST", "/api/repos/create", {"name": "x", "color": 1}, {}, "unknown field: color"),
        ("GET", "/api/models/a/b?shape=round", None, {}, "unknown argument: shape"),
        ("GET", "/api/whoami-v2", None, {"X_Mine": "1"}, "unknown header: x-mine"),
        (
            "PUT",
            "/storage/" + "0" * 64,
            b"x",
            {"Authorization": "Bearer t"},
            "the token was sent to the storage",
        ),
    ],
    ids=["route", "method", "field", "argument", "header", "token"],
)
def test_what_the_library_does_not_send_is_refused(
    own_hub: Hub, method: str, path: str, body: Any, headers: dict[str, str], why: str
) -> None:
    status, answer = ask(own_hub, method, path, body, **headers)
    assert status == 418
    assert why in answer["error"]
    assert len(own_hub.refused) == 1


def test_an_upload_under_a_wrong_hash_is_refused_and_forgotten(own_hub: Hub) -> None:
    right, wrong = sha256(b"x").hexdigest(), sha256(b"y").hexdigest()
    status, answer = ask(own_hub, "PUT", f"/storage/{wrong}", b"x")
    assert (status, answer["error"][:9]) == (400, "BadDigest")
    verify = {"oid": wrong, "size": 1}
    assert ask(own_hub, "POST", f"/verify/{wrong}", verify, Authorization=f"Bearer {TOKEN}")[0] == (
        400
    )
    assert ask(own_hub, "PUT", f"/storage/{right}", b"x")[0] == 200
    right_size, wrong_size = {"oid": right, "size": 1}, {"oid": right, "size": 2}
    for body, status in ((right_size, 200), (wrong_size, 400)):
        path = f"/verify/{right}"
        assert ask(own_hub, "POST", path, body, Authorization=f"Bearer {TOKEN}")[0] == status


def test_a_commit_of_a_large_file_that_was_not_uploaded_is_refused(own_hub: Hub) -> None:
    own_hub.store.create("models", "ann/x", private=True)
    value = {"path": "a.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}
    lines = [
        {"key": "header", "value": {"summary": "x", "description": ""}},
        {"key": "lfsFile", "value": value},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = "/api/models/ann/x/commit/main"
    status, answer = ask(own_hub, "POST", path, body, Authorization=f"Bearer {TOKEN}")
    assert (status, answer["error"]) == (400, f"a.safetensors: LFS object {'0' * 64} is not there")
