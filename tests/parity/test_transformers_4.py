"""Tokenizers that our commands write, loaded in transformers 4.57 as in the version here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.cli.main import run
from tests import tiny
from tests.model.test_tokenizer_files import files_of, publish
from tests.parity import tokenizer_readings
from tests.parity.tokenizer_readings import reading

pytestmark = [pytest.mark.long, pytest.mark.touchy]

VERSION = "4.57.6"
# What AutoTokenizer imports, and no torch; --no-deps, since two versions here are older than ours.
PACKAGES = (
    f"transformers=={VERSION}", "tokenizers==0.22.2", "huggingface_hub==0.36.2", "certifi",
    "charset-normalizer", "filelock", "fsspec", "idna", "jinja2", "markupsafe", "numpy",
    "packaging", "pyyaml", "regex", "requests", "safetensors", "tqdm", "typing_extensions",
    "urllib3",
)  # fmt: skip
OWN = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TRAINED = ["--steps", "1", "--batch-size", "2", "--rank", "4", "--valid-fraction", "0"]
# How the base's files are, and what of its tokenizer the run changes.
BASES = ("saved by 5", "in a file", "in the config", "several")
CHANGES = {
    "as it is": [],
    "end": ["--eos-token", "<|endoftext|>"],
    "template": ["--chat-template", "{template}"],
    "both": ["--eos-token", "<|endoftext|>", "--chat-template", "{template}"],
}
COMMANDS = {
    "fused": ["fuse", "--adapter", "{run}", "--no-verify"],
    "peft": ["export", "{run}", "--to", "peft"],
    "converted": ["convert", "{run}/../fused", "--dtype", "bfloat16"],
    "plain": ["convert", "{run}/../converted", "--dequantize"],
    "gguf": ["export", "{run}", "--to", "gguf", "--fused"],
    "from gguf": ["convert", "{run}/../gguf/model.gguf"],
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with transformers 4.57 alone."""
    folder = tmp_path_factory.mktemp("environment") / "4"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = folder / "bin" / "python"
    install = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile")
    subprocess.run([own, *install, "--no-deps", *PACKAGES], check=True)
    return own


def called(*words: object) -> None:
    assert run([*map(str, words), "--quiet"]) == 0


def written(folder: Path, kind: str) -> Iterator[Path]:
    """The folders with a tokenizer that our commands write from one base, however it is changed."""
    base = tiny.save_base(folder / "b") if kind == BASES[0] else publish(folder / "b", kind)
    pairs = tiny.save_pairs(folder / "pairs.jsonl", 4)
    template = folder / "own.jinja"
    template.write_text(OWN)
    for change, flags in CHANGES.items():
        commands = COMMANDS if change in ("as it is", "both") else {"peft": COMMANDS["peft"]}
        made = folder / change.replace(" ", "-")
        trained = made / "run"
        flags = [flag.format(template=template) for flag in flags]
        called("train", "--model", base, "--data", pairs, "--output", trained, *TRAINED, *flags)
        yield trained
        for name, words in commands.items():
            output = made / name.replace(" ", "-")
            called(*(word.format(run=trained) for word in words), "--output", output)
            if name != "gguf":
                yield output


def readings_of_4(python: Path, folders: list[Path]) -> dict[str, Any]:
    script = str(tokenizer_readings.__file__)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-P", script, *folders], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["version"] == VERSION
    return dict(result["readings"])


@pytest.mark.parametrize("kind", BASES)
def test_written_tokenizers_are_the_same_in_transformers_4(
    python: Path, tmp_path: Path, kind: str
) -> None:
    folders = list(written(tmp_path, kind))
    if kind == BASES[0]:  # what was not changed is the base's own, which 4 does not load either
        copies = [f for f in folders if f.parent.name == "as-it-is" and f.name != "from-gguf"]
        assert all(files_of(folder) == files_of(tmp_path / "b") for folder in copies)
        folders = [folder for folder in folders if folder not in copies]
    assert len(folders) == 2 * len(COMMANDS) + 4 - 5 * (kind == BASES[0])
    readings = readings_of_4(python, folders)
    for folder in folders:
        here = reading(str(folder))
        assert readings[str(folder)] == here, folder
        change = folder.parent.name
        ends = "<|endoftext|>" if change in ("end", "both") else "<|im_end|>"
        assert here["special"]["eos_token"] == ends
        assert here["chats"][0].startswith("[system]") == (change in ("template", "both"))
        assert here["chats"][1].startswith(here["chats"][0])
    ids = [readings[str(folder)]["ids"] for folder in folders]
    assert all(row == ids[0] for row in ids)


def test_what_transformers_4_cannot_load_is_seen(python: Path, tmp_path: Path) -> None:
    """A tokenizer that transformers 5 saved, as the base of "saved by 5" has it."""
    tiny.build_tokenizer().save_pretrained(str(tmp_path))
    with pytest.raises(AssertionError, match="TokenizersBackend"):
        readings_of_4(python, [tmp_path])
