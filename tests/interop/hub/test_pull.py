"""Pulling from a Hub, and what comes back of what was pushed."""

import json
import os
import pickle
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.run_folder.lock import locked
from tests import tiny
from tests.interop.conftest import Command
from tests.interop.hub.state import READ_TOKEN, Hub

pytestmark = pytest.mark.touchy


def fill(hub: Hub, name: str, files: dict[str, bytes], *, private: bool = True) -> None:
    """A repo with these files, as a commit of somebody else's tool leaves it."""
    repo = hub.store.create("models", name, private=private)
    tree = {
        path: (hub.store.keep_large if path.endswith(".safetensors") else hub.store.keep)(data)
        for path, data in files.items()
    }
    hub.store.commit(repo, "main", tree, "theirs")


def safetensors(folder: Path) -> bytes:
    file = folder / "made.safetensors"
    mx.save_safetensors(str(file), {"model.layers.0.self_attn.q_proj.lora_a": mx.ones((64, 4))})
    return file.read_bytes()


@pytest.mark.parametrize("layout", ["mlx", "both"])
def test_an_adapter_that_was_pushed_and_pulled_measures_exactly_the_same(
    hub: Hub, command: Command, run_folder: Path, llama: Path, tmp_path: Path, layout: str
) -> None:
    arguments = ("--repo", "ann/polite", "--samples", 0, "--layout", layout)
    pushed = command("push", run_folder, *arguments)
    assert pushed.status == 0, pushed.err
    pulled = command("pull", "ann/polite", "--output", tmp_path / "back")
    assert pulled.status == 0, pulled.err
    assert pulled.out == f"{tmp_path / 'back'}\n"
    back = tmp_path / "back" / "adapters.safetensors"
    assert back.read_bytes() == (run_folder / "adapters.safetensors").read_bytes()
    data = tiny.save_pairs(tmp_path / "test.jsonl", 12, start=100)

    def measured(adapter: Path) -> dict:
        arguments = ("evaluate", "--model", llama, "--adapter", adapter, "--data", data, "--json")
        result = command(*arguments)
        assert result.status == 0, result.err
        return json.loads(result.out)

    before, after = measured(run_folder), measured(tmp_path / "back")
    assert after == before
    assert before["adapter"] != before["base"]


def test_a_peft_adapter_on_the_hub_is_imported_by_its_id(
    hub: Hub, command: Command, run_folder: Path, llama: Path, tmp_path: Path
) -> None:
    arguments = ("--repo", "ann/peft", "--samples", 0, "--layout", "peft")
    assert command("push", run_folder, *arguments).status == 0
    result = command("import", "ann/peft", "--model", llama, "--output", tmp_path / "back")
    assert result.status == 0, result.err
    names = (run_folder / "adapters.safetensors", tmp_path / "back" / "adapters.safetensors")
    pushed, back = (mx.load(str(file)) for file in names)
    assert pushed.keys() == back.keys()
    assert all(mx.array_equal(value, back[name]).item() for name, value in pushed.items())


def test_a_model_on_the_hub_is_converted_by_its_id(
    hub: Hub, command: Command, llama: Path, tmp_path: Path
) -> None:
    assert command("push", llama, "--repo", "ann/model").status == 0
    how = ("--bits", 4, "--group-size", 32)
    made = command("convert", "ann/model", "--output", tmp_path / "there", *how)
    assert made.status == 0, made.err
    assert command("convert", llama, "--output", tmp_path / "here", *how).status == 0
    files = [tmp_path / parent / "model.safetensors" for parent in ("there", "here")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_pull_says_which_base_is_needed_and_what_comes_next(
    hub: Hub, command: Command, run_folder: Path, tmp_path: Path
) -> None:
    arguments = ("--repo", "ann/polite", "--samples", 0, "--base-id", "meta/small")
    command("push", run_folder, *arguments)
    result = command("pull", "ann/polite", "--output", tmp_path / "back")
    assert "It needs the base meta/small." in result.err
    assert (
        f"Use it: orpo-mlx generate --model meta/small --adapter {tmp_path / 'back'} --prompt TEXT"
    ) in result.err
    pulled = json.loads(command("pull", "ann/polite", "--output", tmp_path / "b2", "--json").out)
    assert (pulled["layout"], pulled["base"]) == ("mlx", "meta/small")
    assert pulled["commit"] == hub.store.repo("models", "ann/polite").branches["main"]


def test_code_and_pickle_stay_where_they_are(hub: Hub, command: Command, tmp_path: Path) -> None:
    fill(
        hub,
        "ann/theirs",
        {
            "adapters.safetensors": safetensors(tmp_path),
            "adapter_config.json": b'{"num_layers": 1, "model": "meta/small"}',
            "modeling_theirs.py": b"import os",
            "adapters.npz": b"PK",
            "pytorch_model.bin": b"x",
            "checkpoints/step-1/adapters.safetensors": b"x",
            "README.md": b"# Theirs\n",
        },
    )
    result = command("pull", "ann/theirs", "--output", tmp_path / "back")
    assert result.status == 0, result.err
    assert sorted(p.name for p in (tmp_path / "back").rglob("*")) == [
        "README.md",
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert hub.count("get") == 3


def test_a_folder_that_a_run_is_in_is_not_pulled_into(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    """Refused before anything is asked of the Hub, and nothing there changes."""
    output = tmp_path / "run"
    with locked(output, lambda event: None):
        (output / "config.yaml").write_text("a run")
        before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.iterdir()}
        for flags in ((), ("--overwrite",)):
            result = command("pull", "ann/theirs", "--output", output, *flags)
            assert result.status == 1
            assert f"{output} is in use by process {os.getpid()} on " in result.err
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.iterdir()} == before
    assert hub.count("get") == 0
    missing = command("pull", "ann/missing", "--output", tmp_path / "new")
    assert missing.status == 1
    assert not (tmp_path / "new").exists()


def test_pefts_layout_is_fetched_and_import_is_named(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    config = {"base_model_name_or_path": "meta/small", "r": 4, "peft_type": "LORA"}
    fill(
        hub,
        "ann/theirs",
        {
            "adapter_model.safetensors": safetensors(tmp_path),
            "adapter_config.json": json.dumps(config).encode(),
        },
    )
    result = command("pull", "ann/theirs", "--output", tmp_path / "back")
    assert result.status == 0, result.err
    assert (
        "It is in PEFT's layout. Convert it to mlx-lm's: orpo-mlx import "
        f"{tmp_path / 'back'} --model meta/small --output FOLDER"
    ) in result.err


def test_a_repo_with_pickled_weights_alone_is_refused_by_name(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    weights = {"adapter_model.bin": pickle.dumps({}), "adapter_config.json": b"{}"}
    fill(hub, "ann/old", weights)
    result = command("pull", "ann/old", "--output", tmp_path / "back")
    assert (result.status, hub.count("get")) == (1, 0)
    assert "adapter_model.bin is never loaded: it can run code." in result.err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"\xff" * 8 + b"{}", "is damaged; safetensors reports"),
        (b"", "is damaged"),
        (None, "is damaged; safetensors reports"),
    ],
    ids=["header", "empty", "cut"],
)
def test_damaged_weights_leave_no_folder(
    hub: Hub, command: Command, tmp_path: Path, weights: bytes | None, message: str
) -> None:
    data = safetensors(tmp_path)[:-100] if weights is None else weights
    fill(hub, "ann/broken", {"adapters.safetensors": data, "adapter_config.json": b"{}"})
    result = command("pull", "ann/broken", "--output", tmp_path / "back")
    assert result.status == 1
    assert message in result.err
    assert not (tmp_path / "back").exists()


def test_a_path_out_of_the_folder_is_refused_by_name(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    path = "additional_chat_templates/../../x.jinja"
    fill(
        hub,
        "ann/evil",
        {
            "adapters.safetensors": safetensors(tmp_path),
            "adapter_config.json": b"{}",
            path: b"boo",
        },
    )
    result = command("pull", "ann/evil", "--output", tmp_path / "back")
    assert (result.status, hub.count("get")) == (1, 0)
    assert result.err.endswith(f"Error: ann/evil names files outside its own folder:\n  {path!r}\n")


def test_a_folder_that_is_there_stays_unless_it_may_go(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    fill(
        hub,
        "ann/theirs",
        {
            "adapters.safetensors": safetensors(tmp_path),
            "adapter_config.json": b"{}",
        },
    )
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine.txt").write_text("mine")
    result = command("pull", "ann/theirs", "--output", tmp_path / "back")
    assert (result.status, len(hub.seen)) == (1, 0)
    assert result.err == (
        f"Error: {tmp_path / 'back'} exists. Replace it with --overwrite, or name another folder.\n"
    )
    assert command("pull", "ann/theirs", "--output", tmp_path / "back", "--overwrite").status == 0
    assert not (tmp_path / "back" / "mine.txt").exists()


def test_a_download_that_is_cut_goes_on_where_it_stopped(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    fill(hub, "ann/theirs", {"adapter_config.json": b"{}"})
    repo = hub.store.repo("models", "ann/theirs")
    tree = repo.trees[repo.branches["main"]]
    file = tmp_path / "large.safetensors"
    mx.save_safetensors(str(file), {"x.lora_a": mx.random.normal((50_000, 100))})
    tree["adapters.safetensors"] = hub.store.keep_large(file.read_bytes())
    hub.cut_answer("get", 12_000_000)
    result = command("pull", "ann/theirs", "--output", tmp_path / "back")
    assert result.status == 0, result.err
    assert (tmp_path / "back" / "adapters.safetensors").read_bytes() == file.read_bytes()
    assert 206 in [seen.status for seen in hub.seen if seen.route == "get"]


@pytest.mark.parametrize(
    ("name", "more", "token", "message"),
    [
        (
            "ann/gone",
            (),
            READ_TOKEN,
            "ann/gone: there is no such repo on the Hub, or your token may not see it. Check the "
            "name; for a private or gated one: hf auth login, and ask for access at {url}/ann/gone",
        ),
        (
            "ann/theirs",
            (),
            "",
            "ann/theirs: there is no such repo on the Hub, or your token may not see it. Check the "
            "name; for a private or gated one: hf auth login, and ask for access at "
            "{url}/ann/theirs",
        ),
        (
            "ann/theirs",
            ("--revision", "v9"),
            READ_TOKEN,
            "ann/theirs has no such branch, tag or commit. See: {url}/ann/theirs",
        ),
        ("theirs", (), READ_TOKEN, "The repo must be USER/NAME, as on the Hub: found 'theirs'"),
    ],
    ids=["gone", "private", "revision", "name"],
)
def test_what_is_not_there_is_one_sentence(
    hub: Hub, command: Command, tmp_path: Path, name: str, more: tuple, token: str, message: str
) -> None:
    fill(hub, "ann/theirs", {"adapters.safetensors": safetensors(tmp_path)})
    result = command("pull", name, "--output", tmp_path / "back", *more, token=token)
    assert (result.status, result.out) == (1, "")
    assert result.err == f"Error: {message.format(url=hub.url)}\n"


def test_a_tag_is_pulled_as_it_was(hub: Hub, command: Command, tmp_path: Path) -> None:
    config = b'{"model": "meta/first"}'
    fill(
        hub,
        "ann/theirs",
        {
            "adapters.safetensors": safetensors(tmp_path),
            "adapter_config.json": config,
        },
    )
    repo = hub.store.repo("models", "ann/theirs")
    repo.tags["v1"] = repo.branches["main"]
    tree = {**repo.trees[repo.branches["main"]]}
    tree["adapter_config.json"] = hub.store.keep(b'{"model": "meta/second"}')
    hub.store.commit(repo, "main", tree, "second")
    command("pull", "ann/theirs", "--output", tmp_path / "v1", "--revision", "v1")
    command("pull", "ann/theirs", "--output", tmp_path / "now")
    read = [(tmp_path / n / "adapter_config.json").read_bytes() for n in ("v1", "now")]
    assert read == [config, b'{"model": "meta/second"}']
