"""Who reaches the page, a test for each rule; the application behind it answers everybody."""

import socket
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from orpo_mlx.judging.server import security
from orpo_mlx.judging.server.security import CSP, MAX_BODY_BYTES, Guard, cookie_name, own_hosts

PORT, TOKEN = 4321, "t0ken-of-this-start"
HOST = f"127.0.0.1:{PORT}"
ORIGIN = f"http://{HOST}"
JSON = {"Content-Type": "application/json", "Origin": ORIGIN}
COOKIE = {"Cookie": f"{cookie_name(PORT)}={TOKEN}"}


async def reached(request: Request) -> Response:
    return PlainTextResponse(f"reached {len(await request.body())}")


def client_at(host: str = "127.0.0.1", port: int = PORT) -> TestClient:
    """A browser without cookies, at the page that is served at `host`."""
    routes = [Route("/{path:path}", reached, methods=["GET", "POST"])]
    app = Guard(Starlette(routes=routes), TOKEN, port, own_hosts(host))
    return TestClient(app, base_url=ORIGIN, follow_redirects=False)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with_cookie = client_at()
    with_cookie.headers.update(COOKIE)
    yield with_cookie


def post(client: TestClient, content: bytes = b"{}", **changes: str | None) -> Response:
    """A POST as the page sends it, with headers changed, or left out (None)."""
    headers = JSON | {name.replace("_", "-"): value for name, value in changes.items()}
    return client.post("/api", content=content, headers={k: v for k, v in headers.items() if v})  # type: ignore[return-value]


# --- Host ---


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_the_pages_own_addresses_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).text == "reached 0"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",  # DNS rebinding: a name of somebody else that leads here
        f"evil.example:{PORT}",
        f"127.0.0.1.evil.example:{PORT}",
        f"localhost.evil.example:{PORT}",
        "127.0.0.1",  # without the port, and with another
        f"127.0.0.1:{PORT + 1}",
        f"127.0.0.2:{PORT}",
        f"0.0.0.0:{PORT}",
        f"192.168.1.5:{PORT}",
        f"localhost.:{PORT}",
        f"user@127.0.0.1:{PORT}",
        f"127.0.0.1:{PORT}/",
        " ",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", f"/?token={TOKEN}", "/api"])
def test_any_other_host_gets_400_even_with_token_and_cookie(
    client: TestClient, host: str, path: str
) -> None:
    response = client.get(path, headers={"Host": host})
    assert (response.status_code, "reached" in response.text) == (400, False)
    assert "set-cookie" not in response.headers


def test_a_missing_or_second_host_gets_400() -> None:
    assert raw_status([]) == 400
    assert raw_status([(b"host", HOST.encode())] * 2) == 400
    assert raw_status([(b"host", HOST.encode())]) == 403  # only the cookie is missing


def raw_status(headers: list[tuple[bytes, bytes]]) -> int:
    """The status of a GET with exactly these headers."""

    async def replace(scope: dict, receive: object, send: object) -> None:
        await client_at().app(scope | {"headers": headers}, receive, send)  # type: ignore[arg-type]

    return TestClient(replace, base_url=ORIGIN).get("/").status_code  # type: ignore[arg-type]


def test_on_port_80_a_host_needs_no_port() -> None:
    client = client_at(port=80)
    client.headers["Cookie"] = f"{cookie_name(80)}={TOKEN}"
    assert client.get("/", headers={"Host": "localhost"}).status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_in_a_network_this_machines_own_names_and_addresses_are_answered_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "studio.lan")
    monkeypatch.setattr(security, "own_addresses", lambda: ["192.168.1.5"])
    client = client_at("0.0.0.0")
    client.headers.update(COOKIE)
    for host in ("192.168.1.5", "studio.lan", "studio.local", "localhost"):
        assert client.get("/", headers={"Host": f"{host}:{PORT}"}).status_code == 200, host
    for host in ("192.168.1.6", "evil.example", "studio.lan.evil.example"):
        assert client.get("/", headers={"Host": f"{host}:{PORT}"}).status_code == 400, host
    assert own_hosts("10.0.0.7") == {"10.0.0.7", "studio.lan", "studio.local"}
    assert own_hosts("127.0.0.1") == {"127.0.0.1", "localhost", "[::1]"}


def test_own_addresses_are_not_those_of_this_machine_alone() -> None:
    assert not [address for address in security.own_addresses() if address.startswith("127.")]


# --- token and cookie ---


def test_the_link_gives_a_cookie_and_leads_to_an_address_without_the_token() -> None:
    client = client_at()
    response = client.get("/", params={"token": TOKEN})
    assert (response.status_code, response.headers["location"], response.text) == (303, "/", "")
    cookie = response.headers["set-cookie"]
    assert cookie == (
        f"orpo-mlx-judge-{PORT}={TOKEN}; HttpOnly; Path=/; SameSite=strict"
    )  # no Domain: of this host alone; no Expires: until the browser is closed
    assert client.get("/").text == "reached 0"


@pytest.mark.parametrize(
    "query",
    ["", "token=", "token=wrong", f"token={TOKEN}x", f"token={TOKEN[:-1]}", "token=%C3%A9%FF",
     f"token={TOKEN}&token={TOKEN}", f"Token={TOKEN}"],
)  # fmt: skip
def test_a_wrong_or_missing_token_gets_403_with_a_sentence(query: str) -> None:
    response = client_at().get(f"/?{query}")
    assert response.status_code == 403
    assert "the link that <code>orpo-mlx judge</code> printed" in response.text
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("path", ["/api", "/api/vote", "/app.js"])
def test_the_token_opens_the_page_alone(path: str) -> None:
    assert client_at().get(path, params={"token": TOKEN}).status_code == 403
    assert client_at().post("/", params={"token": TOKEN}, headers=JSON).status_code == 403


@pytest.mark.parametrize(
    "cookie",
    [
        f"{cookie_name(PORT)}=wrong",
        f"{cookie_name(PORT + 1)}={TOKEN}",  # of another session on this machine
        f"{cookie_name(PORT)}=",
        TOKEN,
    ],
)
def test_without_this_starts_cookie_nothing_is_answered(cookie: str) -> None:
    client = client_at()
    client.headers["Cookie"] = cookie
    assert client.get("/").status_code == 403
    assert post(client).status_code == 403


def test_cookies_of_other_programs_do_no_harm() -> None:
    client = client_at()
    client.headers["Cookie"] = f'a[b]="x; {COOKIE["Cookie"]}; _xsrf=2|1:0|"'
    assert client.get("/").status_code == 200


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[tuple[bytes, bytes]]()
    monkeypatch.setattr(security, "compare_digest", lambda *pair: bool(compared.append(pair)))
    assert client_at().get("/?token=guess").status_code == 403
    assert (b"guess", TOKEN.encode()) in compared


# --- POST ---


def test_a_post_of_the_page_itself_is_answered(client: TestClient) -> None:
    assert post(client, b"{}").text == "reached 2"
    assert post(client, Content_Type="application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",  # a sandboxed frame, a file
        "http://evil.example",
        f"http://evil.example:{PORT}",
        f"http://127.0.0.1:{PORT + 1}",  # another program's page on this machine
        "http://127.0.0.1",
        f"https://127.0.0.1:{PORT}",
        f"http://localhost:{PORT}",  # not the host that was asked
        f"http://127.0.0.1:{PORT}.evil.example",
        f"{ORIGIN}/",
        f"{ORIGIN} http://evil.example",
    ],
)
def test_a_post_of_another_origin_gets_403(client: TestClient, origin: str | None) -> None:
    response = post(client, Origin=origin)
    assert (response.status_code, "reached" in response.text) == (403, False)


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b",
     "text/plain; application/json", "application/jsonp"],
)  # fmt: skip
def test_a_post_that_is_not_json_gets_403(client: TestClient, kind: str | None) -> None:
    assert post(client, Content_Type=kind).status_code == 403


def test_a_large_body_gets_413_before_the_application_sees_it(client: TestClient) -> None:
    assert post(client, b" " * MAX_BODY_BYTES).text == f"reached {MAX_BODY_BYTES}"
    response = post(client, b" " * (MAX_BODY_BYTES + 1))
    assert (response.status_code, "reached" in response.text) == (413, False)


# --- every response ---


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", COOKIE, 200),
        (f"/?token={TOKEN}", {}, 303),
        ("/", {}, 403),
        ("/", {"Host": "evil.example"}, 400),
        ("/", {"Origin": "http://evil.example"} | COOKIE, 200),
    ],
)
def test_every_response_has_the_headers(path: str, headers: dict[str, str], status: int) -> None:
    response = client_at().get(path, headers=headers)
    assert response.status_code == status
    assert CSP == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    for name, value in {
        "content-security-policy": CSP,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }.items():
        assert response.headers.get_list(name) == [value]
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_a_preflight_of_another_origin_gets_no_leave(client: TestClient) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    response = client.options("/api", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_nothing_but_http_reaches_the_application(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/", headers=JSON):
        pass
