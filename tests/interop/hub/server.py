"""A small Hub on 127.0.0.1 for huggingface_hub's own client, which it holds to what it may send."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.interop.hub import answers
from tests.interop.hub.routes import HEADERS, Route, find_route, unknown_fields
from tests.interop.hub.state import USERS, Hub, Seen
from tests.interop.hub.store import RefusedError, Store


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A server that keeps its files in `folder`, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_port}", Store(folder))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    route = Route("", "", "", "", "")
    received = 0

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        split = urlsplit(self.path)
        route = find_route(self.command, split.path)
        if route is None:
            self.route = _Handler.route
            self._drain()
            self._refuse(f"no such route: {self.command} {split.path}")
            return
        self.route, raw = route
        parts = {name: unquote(value) for name, value in raw.items()}
        failure = self.hub.take_failure(self.route.name)
        if failure and not failure.status:
            self._cut(failure.after_bytes)
            return
        body = self._body(parts)
        if failure:
            self.answer(failure.status, {"error": failure.text}, failure.headers)
            return
        wrong = self._what_is_wrong(body, set(parse_qs(split.query)))
        if wrong:
            self._refuse(f"{self.command} {split.path}: {wrong}")
            return
        try:
            user = self._user()
            with self.hub.lock:
                self.hub.before.pop(self.route.name, lambda: None)()
                getattr(answers, self.route.name.replace("-", "_"))(self, parts, body, user)
        except RefusedError as error:
            self.answer(error.status, {"error": str(error)}, _error_headers(error))

    # The request

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of the body as they come."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().strip(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left and (data := self.rfile.read(min(left, 1_000_000))):
            left -= len(data)
            yield data

    def _drain(self) -> None:
        for _ in self._chunks():
            pass

    def _body(self, parts: dict[str, str]) -> Any:
        """The parsed body; what is for the storage goes into a file, whose hash is returned."""
        self.received = 0
        if self.command != "PUT":
            data = b"".join(self._chunks())
            self.received = len(data)
            lines = data.splitlines() if self.route.name == "commit" else [data] if data else []
            parsed = [json.loads(line) for line in lines]
            return parsed if self.route.name == "commit" else parsed[0] if parsed else None
        digest = hashlib.sha256()
        with self.stored(parts).open("wb") as file:
            for data in self._chunks():
                if self.hub.damage_next_upload:
                    self.hub.damage_next_upload = False
                    data = bytes([data[0] ^ 1]) + data[1:]
                digest.update(data)
                file.write(data)
                self.received += len(data)
        return digest.hexdigest()

    def stored(self, parts: dict[str, str]) -> Path:
        """Where an upload lies until it is proven."""
        return self.hub.store.objects / f"{parts['oid']}.{parts.get('part', 'whole')}"

    def _cut(self, after_bytes: int) -> None:
        received = 0
        for data in self._chunks():
            received += len(data)
            if received >= after_bytes:
                break
        self.hub.seen.append(Seen(self.route.name, 0, received))
        self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _what_is_wrong(self, body: Any, query: set[str]) -> str:
        """What huggingface_hub would not have sent."""
        headers = {name.lower() for name in self.headers} - set(HEADERS)
        fields = unknown_fields(self.route, body)
        if self.command == "PUT" and "authorization" in self.headers:
            return "the token was sent to the storage"
        for what, names in (
            ("header", headers),
            ("field", fields),
            ("argument", query - set(self.route.query)),
        ):
            if names:
                return f"unknown {what}: {', '.join(sorted(names))}"
        return ""

    def _user(self) -> str:
        """Who asks; "" for nobody."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        name, role = USERS.get(token, ("", ""))
        if self.route.writes or self.route.name == "whoami":
            if not name:
                raise RefusedError(401, "Invalid username or password.")
            if self.route.writes and role != "write":
                raise RefusedError(403, "You must use a write token to upload to a repository.")
        return name

    # The answer

    def _refuse(self, why: str) -> None:
        self.hub.refused.append(why)
        self.answer(418, {"error": why}, {})

    def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send(status, data, {"Content-Type": "application/json", **(headers or {})})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        if self.route.name in self.hub.lost and status == 200:
            self.hub.lost.remove(self.route.name)
            self._hang_up()
            return
        self.hub.seen.append(Seen(self.route.name if status != 418 else "", status, self.received))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_answers.get(self.route.name)
        if cut is None or len(data) <= cut:
            self.wfile.write(data)
            return
        del self.hub.cut_answers[self.route.name]
        self.wfile.write(data[:cut])
        self._hang_up()


def _error_headers(error: RefusedError) -> dict[str, str]:
    """The Hub's headers of an error."""
    code = {"X-Error-Code": error.code} if error.code else {}
    return {"X-Error-Message": str(error), **code}
