"""Who may talk to the page: one layer before all routes, which knows nothing of judging."""

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from secrets import compare_digest
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_BODY_BYTES = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Who followed the link from a message got the cookie, which is not sent before the next click.
NO_COOKIE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Answers to judge</title>
<p>This page needs the link that <code>orpo-mlx judge</code> printed when it was last started.</p>
<p>If you have just followed that link: <a href="/">go on</a>.</p></html>
"""


class Guard:
    """ASGI middleware: answers what must not reach the page, and adds HEADERS to every response.

    `hosts` are the names, without port, under which the page is served.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, hosts: Iterable[str]):
        self._app, self._token, self._cookie = app, token, cookie_name(port)
        names = {host.lower() for host in hosts}
        self._hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW_HEADERS]
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(request)
        if refusal is None and request.method == "POST":
            try:
                body = await _read_body(request)
            except ClientDisconnect:
                return
            receive = _replay(body or b"")
            if body is None:
                refusal = PlainTextResponse("The request is too large.", 413)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that must not reach the page."""
        if _only(request.headers, "host").lower() not in self._hosts:
            return PlainTextResponse("This address is not one of the page's own.", 400)
        scope = request.scope
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["method"] == "GET" and scope["path"] == "/" and self._is_token(tokens):
            return self._enter()
        if not self._is_token([request.cookies.get(self._cookie, "")]):
            return HTMLResponse(NO_COOKIE, 403)
        if request.method == "POST" and not _is_own_post(request):
            return PlainTextResponse("Only the page itself may send this.", 403)
        return None

    def _enter(self) -> Response:
        """The link's token becomes a cookie, and the address has it no more."""
        response = Response(status_code=303, headers={"Location": "/"})
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return response

    def _is_token(self, values: list[str]) -> bool:
        """In a time that does not depend on how much of it is right."""
        return len(values) == 1 and compare_digest(values[0].encode(), self._token.encode())


_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


def cookie_name(port: int) -> str:
    """Cookies of a host are shared by all its ports."""
    return f"orpo-mlx-judge-{port}"


def own_hosts(host: str) -> set[str]:
    """The names under which a page that is served at `host` may be asked for, IPv6 in brackets."""
    bracketed = f"[{host}]" if ":" in host else host
    if is_loopback(host):
        return {*LOOPBACK, bracketed}
    name = socket.gethostname()
    own = {bracketed, name, f"{name.partition('.')[0]}.local"}
    return own | ({*LOOPBACK, *own_addresses()} if host in ("0.0.0.0", "::") else set())


def is_loopback(host: str) -> bool:
    """Whether an address or name can be reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses in its networks, that of the way out first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the system chooses an address
            first = [str(probe.getsockname()[0])]
        except OSError:
            first = []
    try:
        named = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        named = []
    all_known = [*first, *(str(entry[4][0]) for entry in named)]
    return [address for address in dict.fromkeys(all_known) if not is_loopback(address)]


def _only(headers: Headers, name: str) -> str:
    """The value of a header that is there exactly once."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else ""


def _is_own_post(request: Request) -> bool:
    """Whether the browser says that a script of this very page sends it, as JSON."""
    kind = _only(request.headers, "content-type").partition(";")[0].strip().lower()
    origin = f"{request.scope['scheme']}://{_only(request.headers, 'host')}".lower()
    return kind == "application/json" and _only(request.headers, "origin").lower() == origin


async def _read_body(request: Request) -> bytes | None:
    """The body of a request, None if it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return body


def _replay(body: bytes) -> Receive:
    """What an application receives of a body that was read before."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
