"""A Hub that is busy, cuts connections, or refuses: what push does then, and what it message."""

import shutil
from pathlib import Path

import pytest

from tests.interop.conftest import Command, save_adapter
from tests.interop.hub.pushing import LEAST, head, push
from tests.interop.hub.state import READ_TOKEN, TOKEN, Hub

pytestmark = pytest.mark.touchy


def test_a_busy_hub_is_asked_again_after_as_long_as_it_says(
    hub: Hub, command: Command, adapter: Path
) -> None:
    hub.fail("whoami", 429, "slow down", Retry_After="7")
    hub.fail("create", 500, "oops")
    hub.fail("batch", 429, "slow down", Retry_After="3")
    hub.fail("put", 500, "oops")
    hub.fail("commit", 503, "oops")
    result = push(command, adapter)
    assert result.status == 0, result.err
    # The library waits one second more than it is asked to, against rounding.
    assert result.waited == [7.0, 1.0, 4.0, 1.0, 1.0]
    assert "The Hub answered 429: trying again in 7 s." in result.err
    assert set(hub.store.files("models", "ann/polite")) == LEAST


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    hub: Hub, command: Command, adapter: Path
) -> None:
    hub.lose("commit")
    result = push(command, adapter)
    assert result.status == 0, result.err
    repo = hub.store.repo("models", "ann/polite")
    assert repo.messages == ["initial", "Push adapter with orpo-mlx"]
    assert result.out == f"{hub.url}/ann/polite/commit/{head(hub)}\n"


def test_a_hub_that_stays_busy_is_given_up_with_what_to_do(
    hub: Hub, command: Command, adapter: Path
) -> None:
    for _ in range(5):
        hub.fail("whoami", 503, "down for maintenance")
    result = push(command, adapter)
    assert (result.status, result.waited) == (1, [1.0, 2.0, 4.0, 8.0])
    assert result.err.endswith(
        "Error: The Hub is busy and did not ask who you are, tried several times: down for "
        "maintenance. Try again: what has been sent or fetched is not transferred a second time.\n"
    )


LARGE_BYTES = 50_000_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of 50 MB. Do not write there."""
    return save_adapter(tmp_path_factory.mktemp("large") / "run", LARGE_BYTES // 400)


@pytest.mark.parametrize("multipart", [False, True], ids=["whole", "in parts"])
def test_a_connection_cut_in_the_middle_of_a_large_file_is_tried_again(
    hub: Hub, command: Command, large: Path, multipart: bool
) -> None:
    hub.multipart_above = 16_000_000 if multipart else LARGE_BYTES * 2
    hub.cut("put-part" if multipart else "put", 5_000_000 if multipart else LARGE_BYTES // 2)
    result = push(command, large)
    assert result.status == 0, result.err
    assert result.waited == [1.0]
    sent = (large / "adapters.safetensors").read_bytes()
    assert hub.store.files("models", "ann/polite")["adapters.safetensors"] == sent
    # What was cut is sent again: the whole file, or that part alone.
    again = hub.uploaded_bytes() - len(sent)
    assert 5_000_000 <= again <= (16_000_000 if multipart else len(sent))


def test_what_was_uploaded_before_a_failure_is_not_sent_again(
    hub: Hub, command: Command, large: Path
) -> None:
    hub.fail("commit", 403, "The branch is protected")
    failed = push(command, large)
    assert failed.status == 1
    assert hub.uploaded_bytes() > LARGE_BYTES
    hub.seen.clear()
    assert push(command, large).status == 0
    assert hub.uploaded_bytes() == 0


def test_a_file_that_does_not_match_its_hash_is_refused(
    hub: Hub, command: Command, adapter: Path
) -> None:
    hub.damage_next_upload = True
    result = push(command, adapter)
    assert result.status == 1
    assert "BadDigest" in result.err
    assert set(hub.store.files("models", "ann/polite")) == set()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            "",
            "You are not logged in. Run: hf auth login, or set HF_TOKEN "
            "(https://huggingface.co/settings/tokens).",
        ),
        (
            "hf_" + "wrOng" * 7,
            "The Hub does not accept what HF_TOKEN holds. Make a new token at "
            "https://huggingface.co/settings/tokens",
        ),
        (
            READ_TOKEN,
            "The Hub does not let you make the model repo ann/polite: You must use a write token "
            "to upload to a repository. Take a token that may write "
            "(https://huggingface.co/settings/tokens), or name a repo of your own: --repo ann/"
            "NAME.",
        ),
    ],
    ids=["none", "401", "403"],
)
def test_a_token_that_may_not_write_is_one_sentence(
    hub: Hub, command: Command, adapter: Path, token: str, message: str
) -> None:
    result = push(command, adapter, token=token)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == f"Error: {message}"
    assert hub.store.repos == {}


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        (
            "bob/polite",
            "The Hub does not let you make the model repo bob/polite: You don't have the rights to "
            'create a model under the namespace "bob". Take a token that may write '
            "(https://huggingface.co/settings/tokens), or name a repo of your own: --repo ann/"
            "NAME.",
        ),
        (
            "ann/hf-polite",
            "The Hub did not make the model repo ann/hf-polite: The name hf-polite is not allowed.",
        ),
        ("polite", "--repo must be USER/NAME, as on the Hub: found 'polite'"),
        ("ann/two/three", "--repo must be USER/NAME, as on the Hub: found 'ann/two/three'"),
    ],
)
def test_a_name_that_is_not_allowed_is_one_sentence(
    hub: Hub, command: Command, adapter: Path, repo: str, message: str
) -> None:
    result = command("push", adapter, "--repo", repo, "--samples", 0)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == f"Error: {message}"


def test_a_repo_that_somebody_makes_meanwhile_is_used(
    hub: Hub, command: Command, adapter: Path
) -> None:
    hub.before["create"] = lambda: hub.store.create("models", "ann/polite", private=True)
    result = push(command, adapter)
    assert result.status == 0, result.err
    assert [s.status for s in hub.seen if s.route == "create"] == [409]


def test_what_no_card_may_have_is_reported_before_anything_is_uploaded(
    hub: Hub, command: Command, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "run")
    (folder / "README.md").write_text("---\nbase_model: /home/ann/llama\n---\nMine.\n")
    result = push(command, folder)
    assert (result.status, hub.store.repos) == (1, {})
    assert '"base_model" with value "/home/ann/llama" is not valid' in result.err


def test_no_token_is_printed_even_if_the_hub_sends_it(
    hub: Hub, command: Command, run_folder: Path
) -> None:
    hub.fail("create", 400, f"odd token {TOKEN}, or hf_{'x' * 30}")
    result = push(command, run_folder)
    assert result.err.splitlines()[-1] == (
        "Error: The Hub did not make the model repo ann/polite: odd token [token], or [token]."
    )
    push(command, run_folder)
    for path, data in hub.store.files("models", "ann/polite").items():
        assert TOKEN.encode() not in data, path
