"""What a test sees of the fake Hub, and how it tells it to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

from tests.interop.hub.store import Store

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
        """Do what the next request of a route asks, and cut it off before it is answered."""
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
