"""Talking to the Hub: whose token is used, and which requests are tried again."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, validate_repo_id

from orpo_mlx import __version__
from orpo_mlx.data.reading.hub_sets import is_hub_id
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.hub_errors import BUSY, hub_errors, redact

T = TypeVar("T")
TRIES = 5
LONGEST_WAIT_SECONDS = 60.0


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


def log_in(report: Callback) -> Account:
    """Ask the Hub who the token belongs to; raises OrpoError if nobody is logged in."""
    api = open_hub()
    with hub_errors("ask who you are"):
        account = with_retries(api.whoami, report)
    name = account.get("name") if isinstance(account, dict) else None
    if not isinstance(name, str) or not name:
        raise OrpoError(
            f"The Hub ({api.endpoint}) does not say whose token this is. If HF_ENDPOINT is set, it "
            "must name a Hub."
        )
    return Account(api, name)


def with_retries(call: Callable[[], T], report: Callback) -> T:
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
            report(Notice(f"{_brief(error)}: trying again in {wait:g} s."))
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
def forward_hub_logs(report: Callback, *, bars: bool) -> Iterator[None]:
    """Report the library's warnings about its retries; show its progress bars, or not."""
    logger = logging.getLogger("huggingface_hub")
    handler = _WaitLog(report)
    handlers, logger.handlers, propagate = logger.handlers, [handler], logger.propagate
    logger.propagate = False
    (enable_progress_bars if bars else disable_progress_bars)()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        enable_progress_bars()


class _WaitLog(logging.Handler):
    def __init__(self, report: Callback):
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"https?://\S+", "the Hub", record.getMessage())
        self._report(Notice(redact(" ".join(text.split()))))


def repo_info(
    api: HfApi, repo: str, kind: str, report: Callback, revision: str | None = None
) -> Any:
    """What the Hub knows of a repo; None if it, or that revision, is not there."""
    with hub_errors("look at", repo):
        try:
            return with_retries(
                lambda: api.repo_info(repo, repo_type=kind, revision=revision), report
            )
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            return None
