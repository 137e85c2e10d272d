"""Tokenizers are written as their publishers' files are, which transformers 4 reads, too.

Version 4.57 knows no class TokenizersBackend, and wants a name for each of extra_special_tokens:
ValueError and AttributeError in its AutoTokenizer.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.interop.peft.exporter import export_peft
from orpo_mlx.model.base import load_base
from orpo_mlx.model.tokenizer import load_chat_tokenizer, save_tokenizer
from orpo_mlx.tokenizer_files import TOKENIZER_FILES
from tests import tiny
from tests.interop.adapted import adapted, fused

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
EXTRA = ["<|im_start|>", "<|im_end|>"]
PUBLISHED = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "additional_special_tokens": EXTRA,
    "eos_token": "<|im_end|>",
    "pad_token": {"content": "<|endoftext|>", "special": True, "__type": "AddedToken"},
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}
OWN = "{{ messages[0]['content'] }}<|im_end|>"


def read(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def files_of(folder: Path) -> dict[str, bytes]:
    names = [n for n in TOKENIZER_FILES if n != "generation_config.json"]
    there = {n: folder / n for n in names if (folder / n).is_file()}
    more = {f"x/{f.name}": f for f in sorted((folder / "additional_chat_templates").glob("*"))}
    return {name: file.read_bytes() for name, file in (there | more).items()}


def publish(folder: Path, template: str, **changes: Any) -> Path:
    """A base whose tokenizer's files are as they were written before transformers 5."""
    tiny.save_base(folder)
    config = {**PUBLISHED, **changes}
    file = folder / "chat_template.jinja"
    if template == "in the config":
        config["chat_template"] = file.read_text()
        file.unlink()
    if template == "several":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / CONFIG).write_text(json.dumps(config))
    special = {"eos_token": {"content": config["eos_token"]}, "additional_special_tokens": EXTRA}
    (folder / SPECIAL).write_text(json.dumps(special))
    return folder


def check_readable(config: dict[str, Any]) -> None:
    """What transformers 4.57 needs, and nothing of this machine."""
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert set(config["additional_special_tokens"]) == set(EXTRA)
    assert not {"is_local", "local_files_only", "backend"} & config.keys()


@pytest.mark.parametrize("template", ["in a file", "in the config", "several"])
def test_what_was_not_changed_is_copied(tmp_path: Path, template: str) -> None:
    base, run = publish(tmp_path / "base", template), tmp_path / "run"
    adapted(base, run, ["q_proj"])
    (run / "chat_template.jinja").write_text("of an earlier run")
    save_tokenizer(load_base(str(base)).tokenizer, run)
    assert files_of(run) == files_of(base)
    fused(run, tmp_path / "fused")
    export_peft(ExportConfig(adapter=run, to="peft", output=tmp_path / "peft"))
    assert files_of(tmp_path / "fused") == files_of(tmp_path / "peft") == files_of(base)
    check_readable(read(tmp_path / "peft"))


def test_another_end_token_changes_that_alone(tmp_path: Path) -> None:
    base = publish(tmp_path / "base", "in the config")
    save_tokenizer(load_base(str(base), eos_token="<|endoftext|>").tokenizer, tmp_path)
    assert read(tmp_path) == read(base) | {"eos_token": "<|endoftext|>"}
    assert read(tmp_path, SPECIAL)["eos_token"] == "<|endoftext|>"
    before, after = files_of(base), files_of(tmp_path)
    assert {n for n in before if before[n] != after[n]} == {CONFIG, SPECIAL}
    again = load_base(str(base), adapter=tmp_path).tokenizer
    assert again.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("template", ["in a file", "in the config", "several"])
def test_another_template_is_the_only_one(tmp_path: Path, template: str) -> None:
    base = publish(tmp_path / "base", template)
    save_tokenizer(load_base(str(base), chat_template=OWN).tokenizer, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == OWN
    assert not (tmp_path / "additional_chat_templates").exists()
    assert "chat_template" not in read(tmp_path)
    check_readable(read(tmp_path))
    assert load_base(str(base), adapter=tmp_path).tokenizer.chat_template == OWN


def saved_by_5(folder: Path) -> Path:
    """The tokenizer of a base as transformers 5 writes a loaded one."""
    base = publish(folder / "published", "in a file")
    tokenizer = load_chat_tokenizer(base, {"eos_token_id": 2})
    tokenizer.save_pretrained(str(folder))
    assert read(folder)["tokenizer_class"] == "TokenizersBackend"
    assert set(read(folder)["extra_special_tokens"]) >= set(EXTRA)
    return base


def test_files_that_transformers_5_saved_are_written_for_4_when_they_change(
    tmp_path: Path,
) -> None:
    base = saved_by_5(tmp_path)
    for name in (CONFIG, "chat_template.jinja"):
        (tmp_path / name).replace(base / name)
    save_tokenizer(load_base(str(base), eos_token="<|endoftext|>").tokenizer, tmp_path)
    check_readable(read(tmp_path))
    assert read(tmp_path)["eos_token"] == "<|endoftext|>"
    again = load_base(str(base), adapter=tmp_path).tokenizer
    assert again.encode("<|im_start|>user") == load_base(str(base)).tokenizer.encode(
        "<|im_start|>user"
    )


def test_another_template_makes_files_that_transformers_5_saved_readable_for_4(
    tmp_path: Path,
) -> None:
    base = saved_by_5(tmp_path)
    for name in (CONFIG, "chat_template.jinja"):
        (tmp_path / name).replace(base / name)
    stored = read(base)
    for name in ("is_local", "local_files_only"):  # as a base is published that 5 saved
        stored.pop(name, None)
    (base / CONFIG).write_text(json.dumps(stored))
    save_tokenizer(load_base(str(base), chat_template=OWN).tokenizer, tmp_path)
    check_readable(read(tmp_path))
    assert (tmp_path / "chat_template.jinja").read_text() == OWN


def test_runs_of_earlier_versions_are_exported_for_4(tmp_path: Path) -> None:
    base, run = saved_by_5(tmp_path), tmp_path / "run"
    adapted(base, run, ["q_proj"])
    for name in (CONFIG, "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).replace(run / name)
    assert {"is_local", "local_files_only"} <= read(run).keys()
    fused(run, tmp_path / "fused")
    export_peft(ExportConfig(adapter=run, to="peft", output=tmp_path / "peft"))
    for folder in (tmp_path / "fused", tmp_path / "peft"):
        check_readable(read(folder))


def test_a_base_without_a_config_of_its_tokenizer_gets_one(tmp_path: Path) -> None:
    base = publish(tmp_path / "base", "in a file")
    (base / CONFIG).unlink()
    tokenizer = load_base(str(base), eos_token="<|im_end|>").tokenizer
    save_tokenizer(tokenizer, tmp_path)
    written = read(tmp_path)
    assert not {"is_local", "local_files_only", "backend"} & written.keys()
    assert written["tokenizer_class"] != "TokenizersBackend"
    assert not isinstance(written.get("extra_special_tokens"), list)
    assert load_base(str(base), adapter=tmp_path).tokenizer.eos_token == "<|im_end|>"
