"""The page served until its session is ended on it, on an address of this machine."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from secrets import token_urlsafe
from threading import Event, Thread
from time import monotonic, sleep
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp

from orpo_mlx.config.judging import JudgeConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.judging.outcome import SessionOutcome
from orpo_mlx.judging.server.app import JudgingPage, build_app
from orpo_mlx.judging.server.security import Guard, is_loopback, own_addresses, own_hosts
from orpo_mlx.judging.session import Session

FETCH_SECONDS = 10.0  # how long the result waits for a page that may have been closed
OTHERS_SECONDS = 1.0  # a second open page asks as often as this for the result
LOOK_SECONDS = 0.05


class Links(NamedTuple):
    """Where the page is, each with this start's token."""

    local: str
    network: list[str]  # from other machines, none unless that was asked for


def judge_on_page(
    session: Session,
    config: JudgeConfig,
    *,
    notes: Sequence[str],  # shown before the first item
    outcome: Callable[[], SessionOutcome],
    on_start: Callable[[Links], None],
) -> SessionOutcome:
    """Serve the page until the session is ended on it; then `outcome` in this thread, shown there.

    Ctrl-C passes through, every vote kept. Raises OrpoError where the address cannot be used, or
    what `outcome` raises.
    """
    page = JudgingPage(session, config.judge, notes)
    with listening(config.host, config.port) as listener:
        token, port = token_urlsafe(24), int(listener.getsockname()[1])
        app = Guard(build_app(page), token, port, own_hosts(config.host))
        with _serving(app, listener, page.over) as thread:
            on_start(_links(config.host, port, token))
            _wait(page.over)
            if not thread.is_alive():
                raise RuntimeError("the page's server has ended")
            result = _show_outcome(page, outcome)
            if _wait(page.fetched, FETCH_SECONDS):
                sleep(OTHERS_SECONDS)
    return result


def _show_outcome(page: JudgingPage, outcome: Callable[[], SessionOutcome]) -> SessionOutcome:
    try:
        result = outcome()
    except OrpoError as error:
        page.show_failure(error)
        _wait(page.fetched, FETCH_SECONDS)
        raise
    page.show_result(result)
    return result


def _wait(event: Event, seconds: float = inf) -> bool:
    """As event.wait, which a second Ctrl-C could leave with its lock released."""
    end = monotonic() + seconds
    while not event.is_set() and monotonic() < end:
        sleep(LOOK_SECONDS)
    return event.is_set()


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections; raises OrpoError where there is no such address or port."""
    try:
        entry = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(entry[4][:2], family=entry[0])
    except OSError as error:
        where = f"--host {host} --port {port}" if port else f"--host {host}"
        raise OrpoError(
            f"{where}: the page cannot be served there ({error.strerror or error}). Leave --port "
            "out for a free one, --host for this machine alone."
        ) from None
    with listener:
        yield listener


@contextmanager
def _serving(app: ASGIApp, listener: socket.socket, over: Event) -> Iterator[Thread]:
    """Serve in a thread while the block runs: the result may need this one for minutes."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=2,
        )
    )

    def run() -> None:
        try:
            server.run([listener])
        finally:
            over.set()

    thread = Thread(target=run, name="page", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join()


def _links(host: str, port: int, token: str) -> Links:
    """For every way to this machine a link."""
    everywhere = host in ("0.0.0.0", "::")
    local = "127.0.0.1" if everywhere else host
    outside = own_addresses() if everywhere else [] if is_loopback(host) else [host]
    local, *network = (f"[{h}]" if ":" in h else h for h in (local, *outside))
    link = f"http://{{}}:{port}/?token={token}".format
    return Links(link(local), [link(h) for h in network])
