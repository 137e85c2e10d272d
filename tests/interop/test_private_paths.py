"""No output that is made for others names the folders, and with them the user, of this machine."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from orpo_mlx.cli.main import run as run_cli
from orpo_mlx.interop.hub.bundle import Bundle
from orpo_mlx.training.loop import train
from tests import tiny
from tests.interop.fuse.packing import content, packed
from tests.training.runs import settings

USER = "zelda"


class Here(NamedTuple):
    """Where this user's files are."""

    home: Path
    base: Path
    data: Path
    adapter: Path


@pytest.fixture(scope="module")
def here(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A base, pairs and a run of this user's; every file that tools write paths into has one."""
    home = tmp_path_factory.mktemp("homes") / USER
    base = shutil.copytree(llama, home / "models" / "base")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads(file.read_text()) if (file := base / name).is_file() else {}
        path = str(base / "x.json")
        paths = {"_name_or_path": path, "special_tokens_map_file": path, "sub": {"cache_dir": path}}
        file.write_text(json.dumps(values | paths))
    data = tiny.save_pairs(home / "clients.jsonl", 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        answers = tiny.save_pairs(home / "answers.jsonl", 4, start=50)
        config = settings(base, data, home / "runs" / "polite", steps=2, sft_data=[str(answers)])
        adapter = train(config).output
        yield Here(home, base, data, adapter)


def export(here: Here, out: Path, *flags: str) -> list[str]:
    return ["export", str(here.adapter), "--output", str(out), "--to", *flags]


Make = Callable[[Here, Path], list[str]]
MADE: dict[str, Make] = {
    "fused": lambda here, out: ["fuse", "--adapter", str(here.adapter), "--output", str(out)],
    "converted": lambda here, out: [
        "convert",
        str(here.base),
        "--output",
        str(out),
        "--bits",
        "4",
        "--group-size",
        "32",
    ],
    "plain": lambda here, out: ["convert", str(here.base), "--output", str(out), "--dequantize"],
    "peft": lambda here, out: export(here, out, "peft"),
    "gguf": lambda here, out: export(here, out, "gguf"),
    "gguf next to its base": lambda here, out: export(here, out, "gguf", "--with-base"),
    "gguf fused": lambda here, out: export(here, out, "gguf", "--fused"),
    "pairs": lambda here, out: [
        "data",
        "convert",
        str(here.data),
        "--output",
        str(out / "pairs.jsonl"),
    ],
    "parquet": lambda here, out: [
        "data",
        "convert",
        str(here.data),
        "--output",
        str(out / "pairs.parquet"),
    ],
    "splits": lambda here, out: ["data", "split", str(here.data), "--output", str(out)],
    "preview": lambda here, out: [
        "data",
        "preview",
        str(here.data),
        "--model",
        str(here.base),
        "--html",
        str(out / "x.html"),
    ],
    "check": lambda here, out: ["data", "check", str(here.data), "--html", str(out / "x.html")],
}


@pytest.mark.parametrize("kind", MADE)
def test_no_file_for_others_names_the_user(kind: str, here: Here) -> None:
    out = here.home / "out" / kind
    out.mkdir(parents=True)
    assert run_cli(MADE[kind](here, out)) == 0
    contents = {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    if kind == "peft":  # its reader on this machine looks there; push writes a name
        config = json.loads(contents["adapter_config.json"])
        assert config.pop("base_model_name_or_path") == str(here.base)
        contents["adapter_config.json"] = json.dumps(config).encode()
    assert contents
    assert not [name for name, content in contents.items() if USER.encode() in content]


@pytest.mark.parametrize("layout", ["mlx", "peft", "both"])
def test_no_pushed_file_of_an_adapter_names_the_user(
    layout: str, here: Here, tmp_path: Path
) -> None:
    bundle, _ = packed(here.adapter, tmp_path, layout=layout, samples=1, max_tokens=2)
    assert {upload.path for upload in bundle.uploads} > {"README.md"}
    assert names_of_the_user(bundle) == []


def test_no_pushed_file_of_a_model_or_of_pairs_names_the_user(here: Here, tmp_path: Path) -> None:
    for folder in (here.base, here.data):
        assert names_of_the_user(packed(folder, tmp_path)[0]) == []


def names_of_the_user(bundle: Bundle) -> list[str]:
    """The files of a push that name the user."""
    files = {upload.path: content(bundle, upload.path) for upload in bundle.uploads}
    return [path for path, data in files.items() if USER.encode() in data]
