"""`push` and `pull` as a person meets them before any Hub is asked."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import Cli


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The least that is an adapter."""
    import mlx.core as mx

    folder = tmp_path / "mine"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"x.lora_a": mx.ones((4, 4))})
    (folder / "adapter_config.json").write_text('{"num_layers": 1, "model": "meta/small"}')
    return folder


def test_a_dry_run_shows_files_sizes_and_the_card(cli: Cli, adapter: Path) -> None:
    result = cli("push", adapter, "--repo", "ann/polite", "--dry-run")
    assert result.status == 0, result.err
    assert result.out.startswith("Would be pushed to ann/polite (private), branch main:\n")
    for name in ("README.md", "adapters.safetensors", "adapter_config.json", "3 files"):
        assert name in result.out
    assert "\n\n---\nbase_model: meta/small\n" in result.out
    assert "\nlibrary_name: mlx\n" in result.out
    assert "The card shows no answers: the base meta/small is not on this machine." in result.err


def test_a_dry_run_as_json_is_one_object(cli: Cli, adapter: Path) -> None:
    facts = json.loads(cli("push", adapter, "--repo", "ann/polite", "--dry-run", "--json").out)
    assert (facts["repo"], facts["kind"], facts["commit"]) == ("ann/polite", "adapter", "")
    sizes = dict(facts["files"])
    assert sizes["adapters.safetensors"] == (adapter / "adapters.safetensors").stat().st_size
    assert facts["card"].startswith("---\n")


def test_quiet_leaves_the_result_and_warnings(cli: Cli, adapter: Path) -> None:
    result = cli("push", adapter, "--repo", "ann/polite", "--dry-run", "--quiet")
    assert result.out
    assert result.err == ""


def test_without_a_connection_the_message_is_clear(cli: Cli, adapter: Path) -> None:
    result = cli("push", adapter, "--repo", "ann/polite", "--samples", 0)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] in (
        "Error: The Hub is not asked: HF_HUB_OFFLINE is set. Unset it.",
        "Error: You are not logged in. Run: hf auth login, or set HF_TOKEN "
        "(https://huggingface.co/settings/tokens).",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone", "--repo", "ann/x"), "gone: no such folder (from {here})."),
        (
            ("empty", "--repo", "ann/x"),
            "empty holds nothing to push (found: notes.txt). An adapter has adapters.safetensors, "
            "a model config.json and model.safetensors, pairs are .jsonl or .parquet files.",
        ),
        (
            ("empty/notes.txt", "--repo", "ann/x"),
            "empty/notes.txt: a single file is pushed only if it holds pairs, as .jsonl or "
            ".parquet.",
        ),
        (("mine", "--repo", "polite"), "--repo must be USER/NAME, as on the Hub: found 'polite'"),
        (
            ("mine", "--repo", "ann/x", "--private", "--public"),
            "--private and --public: give one of them, not both.",
        ),
        (
            ("mine", "pairs.jsonl", "--repo", "ann/x"),
            "FOLDER mine,pairs.jsonl: must be one, found 2.",
        ),
        (
            ("pairs.jsonl", "--repo", "ann/x", "--layout", "peft"),
            "--layout: pairs.jsonl is a set of pairs, where this has no effect.",
        ),
        (
            ("mine", "--repo", "ann/x", "--base-id", "small"),
            "--base-id small: must be USER/NAME, as on the Hub.",
        ),
        (
            ("broken", "--repo", "ann/x"),
            "broken/adapters.safetensors is damaged; safetensors reports 'Error while "
            "deserializing header: header too large'. Download or copy it again.",
        ),
    ],
    ids=["gone", "empty", "file", "name", "both", "two", "layout", "base", "damaged"],
)
def test_what_cannot_be_pushed_is_one_sentence(
    cli: Cli, adapter: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapters.safetensors").write_bytes(bytes(range(2, 22)))
    (tmp_path / "broken" / "adapter_config.json").write_text("{}")
    tiny.save_pairs(tmp_path / "pairs.jsonl", 4)
    result = cli("push", *arguments, "--dry-run")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1] == f"Error: {message.format(here=tmp_path)}"


def test_what_is_missing_is_reported_together(cli: Cli) -> None:
    result = cli("push")
    assert result.status == 1
    assert "FOLDER is missing: What to push:" in result.err
    assert "--repo is missing: Repo to push to" in result.err


def test_pull_into_a_folder_that_is_there_asks_nobody(cli: Cli, adapter: Path) -> None:
    result = cli("pull", "ann/polite", "--output", adapter)
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: {adapter} exists. Replace it with --overwrite, or name another folder.\n"
    )


def test_pull_without_a_connection_is_one_message(cli: Cli, tmp_path: Path) -> None:
    result = cli("pull", "ann/polite", "--output", tmp_path / "new")
    assert result.err == "Error: The Hub is not asked: HF_HUB_OFFLINE is set. Unset it.\n"
    assert not (tmp_path / "new").exists()
