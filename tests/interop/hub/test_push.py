"""What is pushed, where it goes and what is said of it, on a Hub that checks every byte."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.interop.conftest import Command
from tests.interop.hub.pushing import LEAST, head, push
from tests.interop.hub.state import Hub

pytestmark = pytest.mark.touchy

ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapters.safetensors",
    "chat_template.jinja",
    "config.yaml",
    "curves.png",
    "generation_config.json",
    "metrics.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_run_becomes_a_private_repo_in_one_commit(
    hub: Hub, command: Command, run_folder: Path
) -> None:
    result = push(command, run_folder)
    assert result.status == 0, result.err
    files = hub.store.files("models", "ann/polite")
    assert set(files) == ADAPTER
    assert files["adapters.safetensors"] == (run_folder / "adapters.safetensors").read_bytes()
    repo = hub.store.repo("models", "ann/polite")
    assert repo.private
    assert repo.messages == ["initial", "Push adapter with orpo-mlx"]
    assert result.out == f"{hub.url}/ann/polite/commit/{head(hub)}\n"
    who = result.err.index("Logged in as ann.")
    made = result.err.index(
        "Creating ann/polite as a private model repo (--public lets everybody read it)."
    )
    assert who < made < result.err.index("Pushing 10 files")
    assert {".lock", "state.json"} <= {p.name for p in run_folder.iterdir()}
    assert "Not pushed: checkpoints/, state.json." in result.err


def test_it_says_who_you_are_before_anything_else_is_asked(
    hub: Hub, command: Command, adapter: Path
) -> None:
    push(command, adapter)
    assert [seen.route for seen in hub.seen][:4] == ["whoami", "validate-yaml", "info", "create"]


def test_public_is_public(hub: Hub, command: Command, adapter: Path) -> None:
    result = push(command, adapter, "--public")
    assert not hub.store.repo("models", "ann/polite").private
    assert "(public: everybody can read it)" in result.err


def test_a_second_push_sends_only_what_changed(
    hub: Hub, command: Command, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "run")
    push(command, folder)
    first = head(hub)
    hub.seen.clear()
    again = push(command, folder)
    assert again.status == 0, again.err
    assert "ann/polite already exists." in again.err
    assert hub.uploaded_bytes() == 0
    assert (hub.count("commit"), head(hub)) == (0, first)
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"x.lora_a": mx.ones((4, 4))})
    changed = (folder / "adapters.safetensors").stat().st_size
    push(command, folder)
    assert hub.uploaded_bytes() == changed
    assert head(hub) != first


def test_message_branch_and_tag(hub: Hub, command: Command, adapter: Path) -> None:
    result = push(
        command, adapter, "--revision", "night/2", "--message", "Second night", "--tag", "v2"
    )
    assert result.status == 0, result.err
    repo = hub.store.repo("models", "ann/polite")
    assert repo.messages[-1] == "Second night"
    assert repo.tags == {"v2": repo.branches["night/2"]}
    assert set(hub.store.files("models", "ann/polite", "main")) == set()
    assert set(hub.store.files("models", "ann/polite", "night/2")) == LEAST
    assert "Creating branch night/2 from main." in result.err
    assert "Tagged v2." in result.err


def test_a_tag_that_is_there_stops_before_anything_is_sent(
    hub: Hub, command: Command, adapter: Path
) -> None:
    push(command, adapter, "--tag", "v1")
    hub.seen.clear()
    result = push(command, adapter, "--tag", "v1")
    assert (result.status, hub.count("preupload")) == (1, 0)
    assert result.err.endswith("Error: ann/polite has a tag v1 already. Name another with --tag.\n")


def test_json_is_one_object_and_all_else_goes_to_standard_error(
    hub: Hub, command: Command, run_folder: Path
) -> None:
    result = json.loads(push(command, run_folder, "--json").out)
    assert (result["repo"], result["kind"], result["private"]) == ("ann/polite", "adapter", True)
    assert (result["commit"], result["user"]) == (head(hub), "ann")
    assert {path for path, _ in result["files"]} == ADAPTER


def test_a_dry_run_asks_nobody(hub: Hub, command: Command, run_folder: Path) -> None:
    result = push(command, run_folder, "--dry-run", token="")
    assert result.status == 0, result.err
    assert hub.seen == []
    for name in ADAPTER:
        assert name in result.out
    assert "# polite\n\nLoRA adapter for `llama`" in result.out


def test_a_public_repo_is_not_pushed_to_unasked(hub: Hub, command: Command, adapter: Path) -> None:
    hub.store.create("models", "ann/polite", private=False)
    result = push(command, adapter)
    assert (result.status, hub.count("preupload")) == (1, 0)
    assert result.err.endswith(
        "Error: ann/polite is public: everybody would see what is pushed. Confirm with --public, "
        "or "
        "name another repo.\n"
    )
    assert push(command, adapter, "--public").status == 0


def test_an_adapter_is_not_pushed_among_a_models_weights(
    hub: Hub, command: Command, adapter: Path, llama: Path
) -> None:
    assert push(command, llama).status == 0
    result = push(command, adapter)
    assert result.status == 1
    assert result.err.endswith(
        "Error: ann/polite holds a model, not an adapter. Name another repo.\n"
    )


def test_a_fused_model_is_pushed_whole(hub: Hub, command: Command, llama: Path) -> None:
    result = push(command, llama, "--base-id", "meta-llama/Llama-3.2-1B")
    assert result.status == 0, result.err
    files = hub.store.files("models", "ann/polite")
    assert files["model.safetensors"] == (llama / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "README.md"} <= set(files)
    assert b"base_model: meta-llama/Llama-3.2-1B" in files["README.md"]


def test_pairs_become_a_data_set_with_a_card(hub: Hub, command: Command, pairs_file: Path) -> None:
    result = command("push", pairs_file, "--repo", "ann/pairs")
    assert result.status == 0, result.err
    files = hub.store.files("datasets", "ann/pairs")
    assert files["pairs.jsonl"] == pairs_file.read_bytes()
    assert b"| `pairs.jsonl` | 16 |" in files["README.md"]
    assert result.out.startswith(f"{hub.url}/datasets/ann/pairs/commit/")
    assert "Creating ann/pairs as a private dataset repo" in result.err


def save_peft(folder: Path) -> Path:
    """The least that is an adapter in PEFT's layout."""
    folder.mkdir()
    weights = {"base_model.model.model.layers.0.x.lora_A.weight": mx.random.normal((4, 100))}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/home/ann/models/small"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_pefts_layout_is_pushed_as_it_is_but_for_paths(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    result = push(command, save_peft(tmp_path / "peft"), "--base-id", "meta/small")
    assert result.status == 0, result.err
    files = hub.store.files("models", "ann/polite")
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files["adapter_config.json"])
    assert config == {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "meta/small"}
    assert b"library_name: peft" in files["README.md"]
    assert b'PeftModel.from_pretrained(base, "ann/polite")' in files["README.md"]


def test_what_an_earlier_push_left_is_removed_in_the_same_commit(
    hub: Hub, command: Command, adapter: Path, tmp_path: Path
) -> None:
    push(command, save_peft(tmp_path / "peft"))
    repo = hub.store.repo("models", "ann/polite")
    tree = {**repo.trees[repo.branches["main"]], "notes.md": hub.store.keep(b"by hand")}
    hub.store.commit(repo, "main", tree, "by hand")
    result = push(command, adapter)
    assert result.status == 0, result.err
    assert set(hub.store.files("models", "ann/polite")) == {*LEAST, "notes.md"}
    assert len(repo.messages) == 4
    assert "Removed there, from an earlier push: adapter_model.safetensors." in result.err


def test_a_model_in_shards_is_pushed_whole_and_replaces_other_shards(
    hub: Hub, command: Command, llama: Path, tmp_path: Path
) -> None:
    push(command, llama)
    folder = shutil.copytree(llama, tmp_path / "sharded")
    weights = mx.load(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names, placed = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        mx.save_safetensors(str(folder / file), {name: weights[name] for name in part})
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    result = push(command, folder)
    assert result.status == 0, result.err
    files = hub.store.files("models", "ann/polite")
    assert {f for f in files if f.startswith("model")} == {
        "model.safetensors.index.json",
        *placed.values(),
    }


def test_a_folder_of_pairs_keeps_its_shape(hub: Hub, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    lines = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    table = pa.Table.from_pylist([json.loads(line) for line in lines.read_text().splitlines()])
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    shutil.copy(lines, folder / "test.jsonl")
    result = command("push", folder, "--repo", "ann/pairs", "--public", "--tag", "v1")
    assert result.status == 0, result.err
    files = hub.store.files("datasets", "ann/pairs", "v1")
    assert set(files) == {"README.md", "test.jsonl", "data/train-00000-of-00001.parquet"}
    sent = (folder / "data" / "train-00000-of-00001.parquet").read_bytes()
    assert files["data/train-00000-of-00001.parquet"] == sent
    assert not hub.store.repo("datasets", "ann/pairs").private


def test_both_layouts_go_in_one_commit_each_in_its_folder(
    hub: Hub, command: Command, run_folder: Path, tmp_path: Path
) -> None:
    result = push(command, run_folder, "--layout", "both", "--base-id", "meta/small")
    assert result.status == 0, result.err
    assert hub.store.repo("models", "ann/polite").messages == [
        "initial",
        "Push adapter with orpo-mlx",
    ]
    files = hub.store.files("models", "ann/polite")
    exported = command("export", run_folder, "--to", "peft", "--output", tmp_path / "peft")
    assert exported.status == 0, exported.err
    weights = (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    config = json.loads(files["adapter_config.json"])
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "meta/small")
    assert json.loads(files["mlx/adapter_config.json"])["model"] == "meta/small"
    inside = {path.removeprefix("mlx/") for path in files if path.startswith("mlx/")}
    assert inside == ADAPTER - {"README.md", "curves.png"}
    again = push(command, run_folder, "--layout", "peft", "--base-id", "meta/small")
    assert "from an earlier push: mlx/adapter_config.json, mlx/adapters.safetensors" in again.err
    left = hub.store.files("models", "ann/polite")
    assert not [path for path in left if path.startswith("mlx/")]


def test_pairs_to_measure_have_no_effect_on_pefts_layout_and_are_refused(
    command: Command, tmp_path: Path, pairs_file: Path
) -> None:
    result = push(command, save_peft(tmp_path / "peft"), "--data", pairs_file)
    assert result.status == 1
    assert "--data: " in result.err and "an adapter in PEFT's layout, where this has no effect" in (
        result.err
    )


def test_how_rows_are_read_is_that_of_the_files_that_have_some(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "a.jsonl").touch()
    rows = [{"prompt": "hi", "completion": f"text {n}", "label": bool(n % 2)} for n in range(4)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.save_pairs(folder / "c.jsonl", 2)
    result = command("push", folder, "--repo", "ann/pairs")
    assert result.status == 0, result.err
    card = hub.store.files("datasets", "ann/pairs")["README.md"].decode()
    (line,) = [x for x in card.splitlines() if x.startswith("Rows are read as: ")]
    unpaired, texts = line.removeprefix("Rows are read as: ").split("; ")
    assert unpaired.startswith("unpaired") and texts == "texts, explicit prompt."
