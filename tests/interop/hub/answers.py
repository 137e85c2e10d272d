"""What the fake Hub answers on each route, by the route's name."""

import hashlib
import re
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.interop.hub.routes import Route
from tests.interop.hub.state import CHUNK_BYTES, Hub
from tests.interop.hub.store import LFS_SUFFIXES, Entry, RefusedError, Repo


class Asked(Protocol):
    """A request that is to be answered."""

    hub: Hub
    route: Route
    headers: Any

    def answer(self, status: int, value: Any) -> None:
        """Send JSON."""

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        """Send bytes."""

    def stored(self, parts: dict[str, str]) -> Path:
        """Where an upload lies until it is proven."""


def _repo(ask: Asked, parts: dict[str, str], user: str) -> Repo:
    kind = parts.get("kind", "models").strip("/")
    repo = ask.hub.store.repo(kind, parts["repo"])
    if repo.private and user != repo.name.split("/")[0]:
        raise RefusedError(404, "Repository not found", "RepoNotFound")
    if ask.route.writes and user != repo.name.split("/")[0]:
        raise RefusedError(403, "You don't have the rights to write to this repo")
    return repo


def whoami(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    ask.answer(200, {"type": "user", "name": user, "orgs": [{"name": "team"}]})


def create(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    owner, kind = body["organization"] or user, body.get("type", "model")
    if not re.fullmatch(r"[\w.-]{1,96}", body["name"]) or body["name"].startswith("hf-"):
        raise RefusedError(400, f"The name {body['name']} is not allowed.")
    if owner not in (user, "team"):
        raise RefusedError(
            403,
            f'You don\'t have the rights to create a {kind} under the namespace "{owner}"',
        )
    name, prefix = f"{owner}/{body['name']}", "datasets/" if kind == "dataset" else ""
    answer = {"url": f"{ask.hub.url}/{prefix}{name}"}
    try:
        private = body.get("visibility") == "private"
        ask.hub.store.create(f"{kind}s", name, private=private)
    except RefusedError as error:
        answer["error"] = str(error)
        ask.answer(error.status, answer)
        return
    ask.answer(200, answer)


def validate_yaml(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    errors = card_errors(body["content"])
    if ask.headers.get("Accept") == "text/plain":  # as RepoCard.validate asks
        text = "".join(f"- Error: {error}\n" for error in errors).encode()
        ask.send(400 if errors else 200, text, {"Content-Type": "text/plain"})
        return
    answer = [{"message": text} for text in errors]
    ask.answer(400 if errors else 200, {"errors": answer, "warnings": []})


def info(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    commit = repo.commit_of(parts.get("revision", "main"))
    ask.answer(200, {
        "id": repo.name, "sha": commit, "private": repo.private, "gated": False,
        "disabled": False, "downloads": 0, "likes": 0, "tags": [],
        "siblings": [_sibling(*item) for item in repo.trees[commit].items()],
    })  # fmt: skip


def tree(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    tree = repo.trees[repo.commit_of(parts["revision"])]
    ask.answer(200, [_listed(path, entry) for path, entry in tree.items()])


def refs(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    answer = {
        kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c} for n, c in own]
        for kind, where, own in (
            ("branches", "heads", repo.branches.items()),
            ("tags", "tags", repo.tags.items()),
        )
    }
    ask.answer(200, {**answer, "converts": []})


def branch(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    if parts["branch"] in repo.branches:
        raise RefusedError(409, "Reference already exists")
    repo.branches[parts["branch"]] = repo.commit_of(body.get("startingPoint", "main"))
    ask.answer(200, {})


def tag(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    if body["tag"] in repo.tags:
        raise RefusedError(409, "Tag reference exists already")
    repo.tags[body["tag"]] = repo.commit_of(parts["revision"])
    ask.answer(200, {})


def preupload(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    tree = repo.trees[repo.commit_of(parts["revision"])]
    answer = []
    for file in body["files"]:
        large = file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
        known = tree.get(file["path"])
        answer.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                **({"oid": known.oid} if known else {}),
            }
        )
    ask.answer(200, {"files": answer})


def batch(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    _repo(ask, parts, user)
    if (body["operation"], body["hash_algo"]) != ("upload", "sha256"):
        raise RefusedError(422, "unknown operation")
    ask.answer(
        200,
        {
            "transfer": "multipart",
            "objects": [_action(ask, o) for o in body["objects"]],
        },
    )


def _action(ask: Asked, wanted: dict[str, Any]) -> dict[str, Any]:
    """How an object is to be uploaded; no actions if it is there."""
    oid, size, url = wanted["oid"], wanted["size"], ask.hub.url
    if ask.hub.store.holds(oid, size):
        return wanted
    upload: dict[str, Any] = {"href": f"{url}/storage/{oid}"}
    if size > ask.hub.multipart_above:
        numbers = range(1, ceil(size / CHUNK_BYTES) + 1)
        parts = {f"{n:05}": f"{url}/storage/{oid}/{n}" for n in numbers}
        upload = {
            "href": f"{url}/complete/{oid}",
            "header": {"chunk_size": str(CHUNK_BYTES), **parts},
        }
    return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{url}/verify/{oid}"}}}


def put(ask: Asked, parts: dict[str, str], body: str, user: str) -> None:
    _accept(ask, ask.stored(parts), parts["oid"], body)
    ask.send(200, b"", {})


def _accept(ask: Asked, file: Path, oid: str, digest: str) -> None:
    """Keep what was uploaded, if it is what its name says."""
    if digest != oid:
        file.unlink()
        raise RefusedError(400, f"BadDigest: {oid} was announced, {digest} came")
    file.rename(ask.hub.store.objects / oid)


def put_part(ask: Asked, parts: dict[str, str], body: str, user: str) -> None:
    ask.send(200, b"", {"ETag": f'"{body}"'})


def complete(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    whole, digest = ask.hub.store.objects / f"{parts['oid']}.whole", hashlib.sha256()
    with whole.open("wb") as file:
        for number, part in enumerate(body["parts"], 1):
            piece = ask.hub.store.objects / f"{parts['oid']}.{number}"
            data = piece.read_bytes()
            if part != {"partNumber": number, "etag": f'"{hashlib.sha256(data).hexdigest()}"'}:
                raise RefusedError(400, f"InvalidPart: {number}")
            digest.update(data)
            file.write(data)
            piece.unlink()
    _accept(ask, whole, parts["oid"], digest.hexdigest())
    ask.answer(200, {})


def verify(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    if not ask.hub.store.holds(body["oid"], body["size"]):
        raise RefusedError(400, f"{body['oid']} of {body['size']} bytes is not there")
    ask.answer(200, {})


def commit(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    commit = ask.hub.store.apply(repo, parts["revision"], body)
    ask.answer(
        200,
        {
            "success": True,
            "commitOid": commit,
            "commitUrl": f"{ask.hub.url}/{_prefix(parts)}{parts['repo']}/commit/{commit}",
        },
    )


def get(ask: Asked, parts: dict[str, str], body: Any, user: str) -> None:
    repo = _repo(ask, parts, user)
    entry = repo.entry(parts["revision"], parts["path"])
    data, status, headers = ask.hub.store.data(entry), 200, {"Accept-Ranges": "bytes"}
    if wanted := re.fullmatch(r"bytes=(\d+)-", ask.headers.get("Range", "")):
        start = int(wanted[1])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        data, status = data[start:], 206
    headers["ETag"] = f'"{entry.oid}"'
    headers["X-Repo-Commit"] = repo.commit_of(parts["revision"])
    if entry.large:
        headers["X-Linked-Etag"], headers["X-Linked-Size"] = f'"{entry.oid}"', str(entry.size)
    ask.send(status, data, headers)


head = get


def _prefix(parts: dict[str, str]) -> str:
    return "datasets/" if parts["kind"] == "datasets" else ""


def _sibling(path: str, entry: Entry) -> dict[str, Any]:
    return {"rfilename": path, "size": entry.size, "blobId": entry.blob_id}


def _listed(path: str, entry: Entry) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": entry.size,
        "oid": entry.blob_id,
    }
    if entry.large:
        answer["lfs"] = {"oid": entry.oid, "size": entry.size, "pointerSize": 130}
    return answer


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
