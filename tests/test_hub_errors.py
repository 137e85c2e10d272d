"""A folder that the Hub refuses: the message begins with what was named and says what to do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from orpo_mlx.errors import OrpoError
from orpo_mlx.hub_errors import fetch_snapshot
from orpo_mlx.interop.hub.client import log_in


def refusing(error: Exception) -> Callable[..., str]:
    def download(*arguments: object, **options: object) -> str:
        raise error

    return download


def no_such_repo() -> RepositoryNotFoundError:
    response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    return RepositoryNotFoundError("404 Client Error.", response=response)


def gated() -> GatedRepoError:
    response: Any = SimpleNamespace(status_code=403, headers={}, request=None)
    return GatedRepoError("403 Client Error.", response=response)


def forbidden() -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=403, headers={}, request=None)
    return HfHubHTTPError(
        "403 Client Error.", response=response, server_message="Your account is blocked."
    )


def behind_the_cache(error: Exception) -> LocalEntryNotFoundError:
    """What the library raises where it has no copy either."""
    raised = LocalEntryNotFoundError("An error happened while trying to locate the files.")
    raised.__cause__ = error
    return raised


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            no_such_repo(),
            "ann/gone: there is no such repo on the Hub, or your token may not see it. Check the "
            "name; for a private or gated one: hf auth login, and ask for access at "
            "https://huggingface.co/ann/gone",
        ),
        (
            LocalEntryNotFoundError("No copy of hf_abcdefgh here."),
            "The Hub cannot be reached to give ann/gone (No copy of [token] here.). Try again: "
            "what has been sent or fetched is not transferred a second time.",
        ),
        (
            HTTPError("The read operation timed out"),
            "The Hub cannot be reached to give ann/gone (The read operation timed out). Try "
            "again: what has been sent or fetched is not transferred a second time.",
        ),
        (
            OSError(28, "No space left on device"),
            "the disk is full, where the Hub's files are kept. Make room, or set HF_HOME to "
            "another folder",
        ),
        (
            gated(),
            "ann/gone is gated: ask for access at https://huggingface.co/ann/gone, and log in with "
            "that account (hf auth login).",
        ),
        (
            behind_the_cache(forbidden()),
            "The Hub does not let you give ann/gone: Your account is blocked. Take a token that "
            "may read it (https://huggingface.co/settings/tokens).",
        ),
    ],
    ids=["404", "no copy", "timeout", "full disk", "gated", "403 behind the cache"],
)
def test_what_the_hub_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing(error))
    monkeypatch.setattr("orpo_mlx.hub_errors.is_offline_mode", lambda: False)
    with pytest.raises(OrpoError) as caught:
        fetch_snapshot("ann/gone", None, ["*.json"], "--model ann/gone")
    assert str(caught.value) == (
        f"--model ann/gone: no such folder, and the Hub did not give it: {why}"
    )


@pytest.mark.parametrize("answer", [{}, {"name": ""}, {"name": None}, {"error": "?"}, None, "ann"])
def test_a_hub_that_does_not_say_who_you_are_is_named(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = SimpleNamespace(whoami=lambda: answer, endpoint="https://example.com")
    monkeypatch.setattr("orpo_mlx.interop.hub.client.open_hub", lambda: api)
    with pytest.raises(OrpoError, match=r"The Hub \(https://example.com\) does not say whose"):
        log_in(lambda event: None)


def test_offline_is_named_where_it_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    error = LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.")
    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing(error))
    monkeypatch.setattr("orpo_mlx.hub_errors.is_offline_mode", lambda: True)
    with pytest.raises(OrpoError, match="HF_HUB_OFFLINE is set. Unset it"):
        fetch_snapshot("ann/gone", None, ["*.json"], "--model ann/gone")
