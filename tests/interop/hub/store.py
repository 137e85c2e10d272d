"""The Hub's repos as a fake keeps them: commits, branches, tags, and real files in a folder."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LFS_SUFFIXES = (".safetensors", ".parquet", ".gguf", ".bin", ".arrow")
GITATTRIBUTES = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)


class RefusedError(Exception):
    """What the Hub answers with an error: status, text, and its own code."""

    def __init__(self, status: int, text: str, code: str = ""):
        super().__init__(text)
        self.status, self.code = status, code


class Entry(NamedTuple):
    """A file of a commit; `oid` names its object, a large one by sha256."""

    oid: str
    size: int
    large: bool

    @property
    def blob_id(self) -> str:
        return git_hash(pointer(self)) if self.large else self.oid


def git_hash(data: bytes) -> str:
    """The SHA-1 under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(entry: Entry) -> bytes:
    """The text that git keeps in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.oid}\nsize {entry.size}\n"
    ).encode()


@dataclass
class Repo:
    kind: str  # models or datasets
    name: str  # USER/NAME
    private: bool
    trees: dict[str, dict[str, Entry]] = field(default_factory=dict)  # by commit
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit id names."""
        known = {**{oid: oid for oid in self.trees}, **self.tags, **self.branches}
        if revision not in known:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]

    def entry(self, revision: str, path: str) -> Entry:
        tree = self.trees[self.commit_of(revision)]
        if path not in tree:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        return tree[path]


class Store:
    """All repos; objects are files in `folder`, named by their hash."""

    def __init__(self, folder: Path):
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True)
        self.repos: dict[tuple[str, str], Repo] = {}

    def repo(self, kind: str, name: str) -> Repo:
        try:
            return self.repos[kind, name]
        except KeyError:
            raise RefusedError(404, "Repository not found", "RepoNotFound") from None

    def create(self, kind: str, name: str, *, private: bool) -> Repo:
        if (kind, name) in self.repos:
            raise RefusedError(409, f"You already created this {kind[:-1]} repo: {name}")
        repo = self.repos[kind, name] = Repo(kind, name, private)
        self.commit(repo, "main", {".gitattributes": self.keep(GITATTRIBUTES.encode())}, "initial")
        return repo

    def keep(self, data: bytes) -> Entry:
        """Keep a regular file."""
        (self.objects / git_hash(data)).write_bytes(data)
        return Entry(git_hash(data), len(data), False)

    def keep_large(self, data: bytes) -> Entry:
        """Keep a file as an upload does."""
        entry = Entry(hashlib.sha256(data).hexdigest(), len(data), True)
        (self.objects / entry.oid).write_bytes(data)
        return entry

    def holds(self, sha256: str, size: int) -> bool:
        file = self.objects / sha256
        return file.is_file() and file.stat().st_size == size

    def data(self, entry: Entry) -> bytes:
        return (self.objects / entry.oid).read_bytes()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """Every file of a revision but the one that the Hub itself makes."""
        repo = self.repo(kind, name)
        tree = repo.trees[repo.commit_of(revision)]
        return {path: self.data(e) for path, e in sorted(tree.items()) if path != ".gitattributes"}

    def apply(self, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> str:
        """Make a commit from the lines of an NDJSON body; returns its id."""
        if branch not in repo.branches:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header, *operations = lines
        if header["key"] != "header":
            raise RefusedError(400, "the first line is not a header")
        tree = dict(repo.trees[repo.branches[branch]])
        for operation in operations:
            self._operate(tree, operation["key"], operation["value"])
        return self.commit(repo, branch, tree, header["value"]["summary"])

    def _operate(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self.keep(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            if not self.holds(value["oid"], value["size"]):
                raise RefusedError(400, f"{path}: LFS object {value['oid']} is not there")
            tree[path] = Entry(value["oid"], value["size"], True)
        elif path in tree:
            del tree[path]
        else:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")

    def commit(self, repo: Repo, branch: str, tree: dict[str, Entry], message: str) -> str:
        parent = repo.branches.get(branch, "")
        content = json.dumps([parent, message, sorted(tree.items()), len(repo.trees)])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repo.trees[commit] = tree
        repo.branches[branch] = commit
        repo.messages.append(message)
        return commit
