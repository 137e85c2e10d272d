"""A folder that the Hub refuses: the message begins with what was named and says what to do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from orpo_mlx.errors import OrpoError
from orpo_mlx.hub_errors import fetch_snapshot


def refusing(error: Exception) -> Callable[..., str]:
    def download(*arguments: object, **options: object) -> str:
        raise error

    return download


def no_such_repo() -> RepositoryNotFoundError:
    response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    return RepositoryNotFoundError("404 Client Error.", response=response)


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
            "The Hub did not give ann/gone: [Errno 28] No space left on device",
        ),
    ],
    ids=["404", "no copy", "timeout", "full disk"],
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


def test_offline_is_named_where_it_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    error = LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.")
    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing(error))
    monkeypatch.setattr("orpo_mlx.hub_errors.is_offline_mode", lambda: True)
    with pytest.raises(OrpoError, match="HF_HUB_OFFLINE is set. Unset it"):
        fetch_snapshot("ann/gone", None, ["*.json"], "--model ann/gone")
