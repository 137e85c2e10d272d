"""A small Hub on 127.0.0.1 for huggingface_hub's own client, which it holds to what it may send."""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.export.hub_routes import HEADERS, Route, find_route, unknown_fields
from tests.export.hub_store import LFS_SUFFIXES, Entry, RefusedError, Repo, Store

TOKEN = "hf_" + "fAkE" * 8
READ_TOKEN = "hf_" + "rEaD" * 8
USERS = {TOKEN: ("ann", "write"), READ_TOKEN: ("ann", "read")}
MULTIPART_ABOVE = CHUNK_BYTES = 16_000_000


@dataclass
class Failure:
    """What the next request of a route gets instead of an answer; status 0 cuts the connection."""

    route: str
    status: int
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0


class Seen(NamedTuple):
    """A request that was answered."""

    route: str
    status: int
    received: int  # bytes of its body


@dataclass
class Hub:
    """What a test sees of the server, and how it tells it to fail."""

    url: str
    store: Store
    failures: list[Failure] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)  # by route, once
    lost: list[str] = field(default_factory=list)  # routes whose next answer does not arrive
    cut_answers: dict[str, int] = field(default_factory=dict)
    damage_next_upload: bool = False
    multipart_above: int = MULTIPART_ABOVE
    lock: Any = field(default_factory=Lock)

    def fail(self, route: str, status: int, text: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.append(Failure(route, status, text, named))

    def cut(self, route: str, after_bytes: int) -> None:
        self.failures.append(Failure(route, 0, after_bytes=after_bytes))

    def lose(self, route: str) -> None:
        """Do what the next request of a route asks, and cut the connection before it is told."""
        self.lost.append(route)

    def cut_answer(self, route: str, after_bytes: int) -> None:
        """Send so many bytes of the next answer that has more, and cut the connection."""
        self.cut_answers[route] = after_bytes

    def take_failure(self, route: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if failure.route == route:
                    self.failures.remove(failure)
                    return failure
        return None

    def count(self, route: str) -> int:
        return sum(seen.route == route for seen in self.seen)

    def uploaded_bytes(self) -> int:
        return sum(seen.received for seen in self.seen if seen.route in ("put", "put-part"))


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
        found = find_route(self.command, split.path)
        if found is None:
            self.route = _Handler.route
            self._drain()
            self._refuse(f"no such route: {self.command} {split.path}")
            return
        self.route, raw = found
        parts = {name: unquote(value) for name, value in raw.items()}
        failure = self.hub.take_failure(self.route.name)
        if failure and not failure.status:
            self._cut(failure.after_bytes)
            return
        body = self._body(parts)
        if failure:
            self._answer(failure.status, {"error": failure.text}, failure.headers)
            return
        wrong = self._what_is_wrong(body, set(parse_qs(split.query)))
        if wrong:
            self._refuse(f"{self.command} {split.path}: {wrong}")
            return
        try:
            user = self._user()
            with self.hub.lock:
                self.hub.before.pop(self.route.name, lambda: None)()
                getattr(self, "_" + self.route.name.replace("-", "_"))(parts, body, user)
        except RefusedError as error:
            self._answer(error.status, {"error": str(error)}, _told(error))

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
        with self._stored(parts).open("wb") as file:
            for data in self._chunks():
                if self.hub.damage_next_upload:
                    self.hub.damage_next_upload = False
                    data = bytes([data[0] ^ 1]) + data[1:]
                digest.update(data)
                file.write(data)
                self.received += len(data)
        return digest.hexdigest()

    def _stored(self, parts: dict[str, str]) -> Path:
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
            ("header", headers), ("field", fields), ("argument", query - set(self.route.query)),
        ):  # fmt: skip
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
        self._answer(418, {"error": why}, {})

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._send(status, data, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
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

    # The routes

    def _repo(self, parts: dict[str, str], user: str) -> Repo:
        kind = parts.get("kind", "models").strip("/")
        repo = self.hub.store.repo(kind, parts["repo"])
        if repo.private and user != repo.name.split("/")[0]:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        if self.route.writes and user != repo.name.split("/")[0]:
            raise RefusedError(403, "You don't have the rights to write to this repo")
        return repo

    def _whoami(self, parts: dict[str, str], body: Any, user: str) -> None:
        self._answer(200, {"type": "user", "name": user, "orgs": [{"name": "team"}]})

    def _create(self, parts: dict[str, str], body: Any, user: str) -> None:
        owner, kind = body["organization"] or user, body.get("type", "model")
        if not re.fullmatch(r"[\w.-]{1,96}", body["name"]) or body["name"].startswith("hf-"):
            raise RefusedError(400, f"The name {body['name']} is not allowed.")
        if owner not in (user, "team"):
            raise RefusedError(
                403,
                f'You don\'t have the rights to create a {kind} under the namespace "{owner}"',
            )
        name, prefix = f"{owner}/{body['name']}", "datasets/" if kind == "dataset" else ""
        told = {"url": f"{self.hub.url}/{prefix}{name}"}
        try:
            private = body.get("visibility") == "private"
            self.hub.store.create(f"{kind}s", name, private=private)
        except RefusedError as error:
            told["error"] = str(error)
            self._answer(error.status, told)
            return
        self._answer(200, told)

    def _validate_yaml(self, parts: dict[str, str], body: Any, user: str) -> None:
        errors = card_errors(body["content"])
        if self.headers.get("Accept") == "text/plain":  # as RepoCard.validate asks
            text = "".join(f"- Error: {error}\n" for error in errors).encode()
            self._send(400 if errors else 200, text, {"Content-Type": "text/plain"})
            return
        told = [{"message": text} for text in errors]
        self._answer(400 if errors else 200, {"errors": told, "warnings": []})

    def _info(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        commit = repo.commit_of(parts.get("revision", "main"))
        self._answer(200, {
            "id": repo.name, "sha": commit, "private": repo.private, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [_sibling(*item) for item in repo.trees[commit].items()],
        })  # fmt: skip

    def _tree(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        tree = repo.trees[repo.commit_of(parts["revision"])]
        self._answer(200, [_listed(path, entry) for path, entry in tree.items()])

    def _refs(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        told = {
            kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c} for n, c in own]
            for kind, where, own in (
                ("branches", "heads", repo.branches.items()), ("tags", "tags", repo.tags.items()),
            )
        }  # fmt: skip
        self._answer(200, {**told, "converts": []})

    def _branch(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        if parts["branch"] in repo.branches:
            raise RefusedError(409, "Reference already exists")
        repo.branches[parts["branch"]] = repo.commit_of(body.get("startingPoint", "main"))
        self._answer(200, {})

    def _tag(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        if body["tag"] in repo.tags:
            raise RefusedError(409, "Tag reference exists already")
        repo.tags[body["tag"]] = repo.commit_of(parts["revision"])
        self._answer(200, {})

    def _preupload(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        tree = repo.trees[repo.commit_of(parts["revision"])]
        told = []
        for file in body["files"]:
            large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
            known = tree.get(file["path"])
            told.append({
                "path": file["path"], "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False, **({"oid": known.oid} if known else {}),
            })  # fmt: skip
        self._answer(200, {"files": told})

    def _batch(self, parts: dict[str, str], body: Any, user: str) -> None:
        self._repo(parts, user)
        if (body["operation"], body["hash_algo"]) != ("upload", "sha256"):
            raise RefusedError(422, "unknown operation")
        self._answer(200, {
            "transfer": "multipart", "objects": [self._action(o) for o in body["objects"]],
        })  # fmt: skip

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """How an object is to be uploaded; no actions if it is there."""
        oid, size, url = wanted["oid"], wanted["size"], self.hub.url
        if self.hub.store.holds(oid, size):
            return wanted
        upload: dict[str, Any] = {"href": f"{url}/storage/{oid}"}
        if size > self.hub.multipart_above:
            numbers = range(1, ceil(size / CHUNK_BYTES) + 1)
            parts = {f"{n:05}": f"{url}/storage/{oid}/{n}" for n in numbers}
            upload = {
                "href": f"{url}/complete/{oid}",
                "header": {"chunk_size": str(CHUNK_BYTES), **parts},
            }
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{url}/verify/{oid}"}}}

    def _put(self, parts: dict[str, str], body: str, user: str) -> None:
        self._accept(self._stored(parts), parts["oid"], body)
        self._send(200, b"", {})

    def _accept(self, file: Path, oid: str, digest: str) -> None:
        """Keep what was uploaded, if it is what its name says."""
        if digest != oid:
            file.unlink()
            raise RefusedError(400, f"BadDigest: {oid} was announced, {digest} came")
        file.rename(self.hub.store.objects / oid)

    def _put_part(self, parts: dict[str, str], body: str, user: str) -> None:
        self._send(200, b"", {"ETag": f'"{body}"'})

    def _complete(self, parts: dict[str, str], body: Any, user: str) -> None:
        whole, digest = self.hub.store.objects / f"{parts['oid']}.whole", hashlib.sha256()
        with whole.open("wb") as file:
            for number, part in enumerate(body["parts"], 1):
                piece = self.hub.store.objects / f"{parts['oid']}.{number}"
                data = piece.read_bytes()
                if part != {"partNumber": number, "etag": f'"{hashlib.sha256(data).hexdigest()}"'}:
                    raise RefusedError(400, f"InvalidPart: {number}")
                digest.update(data)
                file.write(data)
                piece.unlink()
        self._accept(whole, parts["oid"], digest.hexdigest())
        self._answer(200, {})

    def _verify(self, parts: dict[str, str], body: Any, user: str) -> None:
        if not self.hub.store.holds(body["oid"], body["size"]):
            raise RefusedError(400, f"{body['oid']} of {body['size']} bytes is not there")
        self._answer(200, {})

    def _commit(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        commit = self.hub.store.apply(repo, parts["revision"], body)
        self._answer(200, {
            "success": True, "commitOid": commit,
            "commitUrl": f"{self.hub.url}/{_prefix(parts)}{parts['repo']}/commit/{commit}",
        })  # fmt: skip

    def _get(self, parts: dict[str, str], body: Any, user: str) -> None:
        repo = self._repo(parts, user)
        entry = repo.entry(parts["revision"], parts["path"])
        data, status, headers = self.hub.store.data(entry), 200, {"Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        headers["ETag"] = f'"{entry.oid}"'
        headers["X-Repo-Commit"] = repo.commit_of(parts["revision"])
        if entry.large:
            headers["X-Linked-Etag"], headers["X-Linked-Size"] = f'"{entry.oid}"', str(entry.size)
        self._send(status, data, headers)

    _head = _get


def _prefix(parts: dict[str, str]) -> str:
    return "datasets/" if parts["kind"] == "datasets" else ""


def _told(error: RefusedError) -> dict[str, str]:
    """The Hub's headers of an error."""
    code = {"X-Error-Code": error.code} if error.code else {}
    return {"X-Error-Message": str(error), **code}


def _sibling(path: str, entry: Entry) -> dict[str, Any]:
    return {"rfilename": path, "size": entry.size, "blobId": entry.blob_id}


def _listed(path: str, entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {
        "type": "file", "path": path, "size": entry.size, "oid": entry.blob_id,
    }  # fmt: skip
    if entry.large:
        told["lfs"] = {"oid": entry.oid, "size": entry.size, "pointerSize": 130}
    return told


def card_errors(text: str) -> list[str]:
    """What the Hub finds wrong with the metadata of a card."""
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    data = (yaml.safe_load(block[1]) if block else None) or {}
    errors = []
    for key, kind in (("base_model", "model"), ("datasets", "dataset")):
        values = data.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
                errors.append(
                    f'"{key}" with value "{value}" is not valid. Use a {kind} id from '
                    f"https://hf.co/{kind}s."
                )
    if not re.fullmatch(r"[a-z0-9.-]+", data.get("license", "mit")):
        errors.append('"license" must be one of the known ids.')
    return errors
