"""Errors of the Hub as messages for people: its 401 to 504, no connection, no login."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import get_token, hf_hub_url, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from orpo_mlx.disk_errors import why_disk_refuses
from orpo_mlx.errors import OrpoError

BUSY = (429, 500, 502, 503, 504)
TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "Try again: what has been sent or fetched is not transferred a second time."
_TOKEN = re.compile(r"\b(hf|api_org|hf_oauth|hf_jwt)_[\w-]{6,}(\.[\w-]+)*")


@contextmanager
def hub_errors(doing: str, repo: str = "", user: str = "") -> Iterator[None]:
    """Turn what huggingface_hub raises into an OrpoError that says what to do next."""
    try:
        yield
    except OrpoError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        raise OrpoError(redact(_message_for(cause or error, doing, repo, user))) from None


def fetch_snapshot(repo: str, revision: str | None, patterns: Sequence[str], heading: str) -> Path:
    """The folder of a repo in the Hub's cache, its files fetched where they are not there.

    Raises OrpoError, which begins with `heading`: what the user named, and how.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError:
        raise OrpoError(f"{heading}: no such folder, and not a Hub id (USER/NAME).") from None
    except (HTTPError, OSError) as error:
        why = _message_for(error, "give", repo, "")
        text = f"{heading}: no such folder, and the Hub did not give it: {why}"
        raise OrpoError(redact(text)) from error


def _message_for(error: BaseException, doing: str, repo: str, user: str) -> str:
    location = f" {repo}" if repo else ""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the library looked in its cache, too, and reports that
    if why := why_disk_refuses(error):
        return f"{why}, where the Hub's files are kept. Make room, or set HF_HOME to another folder"
    if isinstance(error, LocalTokenNotFoundError):
        return f"You are not logged in. Run: hf auth login, or set HF_TOKEN ({TOKENS})."
    offline = isinstance(error, LocalEntryNotFoundError) and is_offline_mode()
    if offline or isinstance(error, OfflineModeIsEnabled):
        return "The Hub is not asked: HF_HUB_OFFLINE is set. Unset it."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such branch, tag or commit. See: {_address(repo)}"
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: ask for access at {_address(repo)}, and log in with that account "
            "(hf auth login)."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo}: there is no such repo on the Hub, or your token may not see it. Check the "
            f"name; for a private or gated one: hf auth login, and ask for access at "
            f"{_address(repo)}"
        )
    if isinstance(error, HfHubHTTPError):
        return _message_by_status(error, doing, location, user)
    if isinstance(error, LocalEntryNotFoundError | HTTPError):
        return f"The Hub cannot be reached to {doing}{location} ({_first_line(error)}). {AGAIN}"
    return f"The Hub did not {doing}{location}: {_first_line(error)}"


def _message_by_status(error: HfHubHTTPError, doing: str, location: str, user: str) -> str:
    status = error.response.status_code
    reason = (error.server_message or _first_line(error)).strip().rstrip(".")
    if status == 401:
        where = "what HF_TOKEN holds" if "HF_TOKEN" in os.environ else "the token of hf auth login"
        return f"The Hub does not accept {where}. Make a new token at {TOKENS}"
    if status == 403:
        own = f", or name a repo of your own: --repo {user}/NAME" if user else ""
        may = "read it" if doing in ("give", "look at") else "write"
        return (
            f"The Hub does not let you {doing}{location}: {reason}. Take a token that may {may} "
            f"({TOKENS}){own}."
        )
    if status in BUSY:
        return (
            f"The Hub is busy and did not {doing}{location}, tried several times: {reason}. {AGAIN}"
        )
    if status in (400, 409, 422):
        return f"The Hub did not {doing}{location}: {reason}."
    return f"The Hub answered {status} when asked to {doing}{location}: {reason}."


def _address(repo: str) -> str:
    return hf_hub_url(repo, "").partition("/resolve/")[0]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def redact(text: str) -> str:
    """A text without tokens, and without what signs an address."""
    if token := get_token():
        text = text.replace(token, "[token]")
    text = _TOKEN.sub("[token]", text)
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
