"""Folders of models with what would hang a loader, or mislead it: refused before it begins."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.adapters import read_adapter
from orpo_mlx.model.base import find_model, load_base
from orpo_mlx.model.safetensors import read_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "base"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"]
)
def test_a_git_lfs_pointer_is_named_with_what_to_do(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(OrpoError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        load_base(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.json"])
def test_a_pipe_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(OrpoError, match=f"{name} is not a file"):
        find_model(str(folder))


def test_a_pointer_as_an_adapters_weights_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "adapters.safetensors").write_bytes(POINTER)
    (tmp_path / "adapter_config.json").write_text("{}")
    for read in (
        lambda: read_adapter(tmp_path),
        lambda: read_header(tmp_path / "adapters.safetensors"),
    ):
        with pytest.raises(OrpoError, match="git lfs pull"):
            read()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": 1e12},
        {"n_layer": 40},
        {"text_config": {"num_hidden_layers": 10**5}},
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_more_layers_than_tensors_are_refused(
    changes: dict[str, Any], weights: bool, folder: Path
) -> None:
    if not weights:
        (folder / "model.safetensors").unlink()
        changes = {key: 10**5 if value == 40 else value for key, value in changes.items()}
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    held = "its files have 29 tensors" if weights else r"\(at most 10,000\)"
    with pytest.raises(OrpoError, match=rf"config.json: n\w+ is [\d,.]+.*{held}"):
        find_model(str(folder), weights=weights)


@pytest.mark.parametrize("name", ["[x]", "a*b", "what?"])
def test_names_that_mlx_lm_takes_for_patterns_are_refused(name: str, folder: Path) -> None:
    other = folder.rename(folder.with_name(name))
    with pytest.raises(OrpoError, match=r"takes \*, \? and \[ .* make a link to it: ln -s '"):
        find_model(str(other))
