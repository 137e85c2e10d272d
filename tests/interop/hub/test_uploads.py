"""Which files are pushed, and that nothing of this machine is in them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orpo_mlx.public_names import public_name
from tests.interop.fuse.packing import content, packed


def test_no_path_of_this_machine_is_pushed(run_folder: Path, tmp_path: Path) -> None:
    bundle, _ = packed(run_folder, tmp_path)
    config = (run_folder / "config.yaml").read_text()
    assert "secret-place" in config, "the run names no path: the test would show nothing"
    for upload in bundle.uploads:
        data = content(bundle, upload.path)
        for private in (
            b"secret-place",
            str(run_folder.parent).encode(),
            str(Path.home()).encode(),
        ):
            assert private not in data, upload.path
    kept = yaml.safe_load(content(bundle, "config.yaml"))
    assert (kept["data"], kept["model"]) == (["pairs.jsonl"], "llama")
    assert kept["beta"] == yaml.safe_load(config)["beta"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/ann/x/pairs.jsonl:2", "pairs.jsonl:2"),
        ("~/pairs.jsonl", "pairs.jsonl"),
        ("C:\\Users\\ann\\pairs.jsonl", "pairs.jsonl"),
        ("../ann/pairs/", "pairs"),
        ("deep/down/pairs.jsonl", "pairs.jsonl"),
        ("somebody/pairs", "somebody/pairs"),
        ("somebody/pairs:0.5", "somebody/pairs:0.5"),
        ("response", "response"),
        (["/a/b", {"c": "/d/e"}, 3], ["b", {"c": "e"}, 3]),
        ("{{ a }}\n/usr/x", "{{ a }}\n/usr/x"),
    ],
)
def test_a_local_path_is_cut_to_its_name(value: Any, expected: Any) -> None:
    assert public_name(value) == expected


def test_only_what_belongs_to_an_adapter_is_pushed(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for name in (".env", "notes.txt", "optimizer.safetensors", "pytorch_model.bin", "run.py"):
        (folder / name).write_text("x")
    for name in ("samples.jsonl", "sinks.json"):
        (folder / name).write_text("{}\n")
    for name in ("trunk", "tensorboard", "wandb"):
        (folder / name).mkdir()
    (folder / "trunk" / "states.npy").write_text("x")
    plain, _ = packed(run_folder, tmp_path)
    bundle, notices = packed(folder, tmp_path)
    assert [u.path for u in bundle.uploads] == [u.path for u in plain.uploads]
    [text] = [t for t in notices if t.startswith("Not pushed:")]
    assert "optimizer.safetensors" in text
    for name in ("trunk/", "tensorboard/", "wandb/", "samples.jsonl", "sinks.json"):
        assert name in text


def test_a_tokenizer_that_transformers_5_saved_is_pushed_for_4(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    saved = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_end|>"]}
    saved |= {"is_local": True, "local_files_only": True, "backend": "tokenizers"}
    (folder / "tokenizer_config.json").write_text(json.dumps(saved))
    bundle, _ = packed(folder, tmp_path)
    assert json.loads(content(bundle, "tokenizer_config.json")) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_end|>"],
    }
