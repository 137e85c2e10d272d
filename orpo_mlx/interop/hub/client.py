"""Talking to the Hub: who asks, what is tried again, and its errors in words for people."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, validate_repo_id

from orpo_mlx import __version__
from orpo_mlx.data.reading.hub_sets import is_hub_id
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice

T = TypeVar("T")
TRIES = 5
LONGEST_WAIT_SECONDS = 60.0
BUSY = (429, 500, 502, 503, 504)
TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "Try again: what has been sent or fetched is not transferred a second time."
_TOKEN = re.compile(r"\b(hf|api_org|hf_oauth|hf_jwt)_[\w-]{6,}(\.[\w-]+)*")


class Account(NamedTuple):
    """Who is logged in."""

    api: HfApi
    name: str


def check_repo_name(repo: str, flag: str = "") -> None:
    """Raise OrpoError unless a name has the form that the Hub asks for."""
    why = "" if is_hub_id(repo) else f"found {repo!r}"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        why = why or str(error)
    if why:
        raise OrpoError(f"{flag or 'The repo'} must be USER/NAME, as on the Hub: {why}")


def open_hub() -> HfApi:
    """The library's client, which reads the user's token by itself."""
    return HfApi(library_name="orpo-mlx", library_version=__version__)


def log_in(emit: Callback) -> Account:
    """Ask the Hub who the token belongs to; raises OrpoError if nobody is logged in."""
    api = open_hub()
    with explained("ask who you are"):
        name = str(retried(api.whoami, emit)["name"])
    return Account(api, name)


def retried(call: Callable[[], T], emit: Callback) -> T:
    """The result of a call that the library itself tries only once.

    Tried again when the Hub is busy, for as long as it asks, or when the connection is cut.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except OfflineModeIsEnabled:
            raise
        except HTTPError as error:
            wait = _wait_seconds(error, attempt)
            if wait is None or attempt == TRIES - 1:
                raise
            emit(Notice(f"{_brief(error)}: trying again in {wait:g} s."))
            time.sleep(wait)
    raise AssertionError("unreachable")


def _wait_seconds(error: HTTPError, attempt: int) -> float | None:
    """How long to wait before another try; None if it would not help."""
    if not isinstance(error, HfHubHTTPError):
        return float(2**attempt)
    if error.response.status_code not in BUSY:
        return None
    asked = error.response.headers.get("Retry-After", "")
    wait = float(asked) if asked.isdigit() else float(2**attempt)
    return wait if wait <= LONGEST_WAIT_SECONDS else None


def _brief(error: HTTPError) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"The Hub answered {error.response.status_code}"
    return f"The connection to the Hub broke ({type(error).__name__})"


@contextmanager
def explained(doing: str, repo: str = "", user: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into an OrpoError that says what to do next."""
    try:
        yield
    except OrpoError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        raise OrpoError(redacted(_said(cause or error, doing, repo, user))) from None


def _said(error: BaseException, doing: str, repo: str, user: str) -> str:
    place = f" {repo}" if repo else ""
    if isinstance(error, LocalTokenNotFoundError):
        return f"You are not logged in. Run: hf auth login, or set HF_TOKEN ({TOKENS})."
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub is not asked: HF_HUB_OFFLINE is set. Unset it."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such branch, tag or commit. See: {_address(repo)}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo}: there is no such repo on the Hub, or your token may not see it. Check the "
            f"name; for a private or gated one: hf auth login, and ask for access at "
            f"{_address(repo)}"
        )
    if isinstance(error, HfHubHTTPError):
        return _said_by_status(error, doing, place, user)
    if isinstance(error, LocalEntryNotFoundError | HTTPError):
        return f"The Hub cannot be reached to {doing}{place} ({_first_line(error)}). {AGAIN}"
    return f"The Hub did not {doing}{place}: {_first_line(error)}"


def _said_by_status(error: HfHubHTTPError, doing: str, place: str, user: str) -> str:
    status = error.response.status_code
    told = (error.server_message or _first_line(error)).strip().rstrip(".")
    if status == 401:
        where = "what HF_TOKEN holds" if "HF_TOKEN" in os.environ else "the token of hf auth login"
        return f"The Hub does not accept {where}. Make a new token at {TOKENS}"
    if status == 403:
        own = f", or name a repo of your own: --repo {user}/NAME" if user else ""
        return (
            f"The Hub does not let you {doing}{place}: {told}. Take a token that may write "
            f"({TOKENS}){own}."
        )
    if status in BUSY:
        return f"The Hub is busy and did not {doing}{place}, tried several times: {told}. {AGAIN}"
    if status in (400, 409, 422):
        return f"The Hub did not {doing}{place}: {told}."
    return f"The Hub answered {status} when asked to {doing}{place}: {told}."


def _address(repo: str) -> str:
    return hf_hub_url(repo, "").partition("/resolve/")[0]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def redacted(text: str) -> str:
    """A text without tokens, and without what signs an address."""
    if token := get_token():
        text = text.replace(token, "[token]")
    text = _TOKEN.sub("[token]", text)
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)


@contextmanager
def told_waits(emit: Callback, *, bars: bool) -> Iterator[None]:
    """Pass on what the library says of its own tries, and show its bars, or not."""
    logger = logging.getLogger("huggingface_hub")
    handler = _Teller(emit)
    handlers, logger.handlers, propagate = logger.handlers, [handler], logger.propagate
    logger.propagate = False
    (enable_progress_bars if bars else disable_progress_bars)()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        enable_progress_bars()


class _Teller(logging.Handler):
    def __init__(self, emit: Callback):
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"https?://\S+", "the Hub", record.getMessage())
        self._emit(Notice(redacted(" ".join(text.split()))))


def repo_info(api: HfApi, repo: str, kind: str, emit: Callback, revision: str | None = None) -> Any:
    """What the Hub knows of a repo; None if it, or that revision, is not there."""
    with explained("look at", repo):
        try:
            return retried(lambda: api.repo_info(repo, repo_type=kind, revision=revision), emit)
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            return None
