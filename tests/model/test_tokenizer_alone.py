"""A base opened without its weights: what makes its text is all there."""

import json
from pathlib import Path

import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import load_base, load_tokenizer_alone


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """The tiny llama's files without its weights."""
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_tokenizer_end_tokens_and_template_are_those_of_the_whole_base(
    llama: Path, folder: Path
) -> None:
    whole, alone = load_base(str(llama)), load_tokenizer_alone(str(folder))
    assert alone.tokenizer.eos_token_ids == whole.tokenizer.eos_token_ids
    assert alone.tokenizer.chat_template == whole.tokenizer.chat_template
    assert alone.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert alone.config["eos_token_id"] == whole.config["eos_token_id"]
    assert not alone.model.parameters()


def test_the_end_tokens_of_the_generation_config_count(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert load_tokenizer_alone(str(folder)).tokenizer.eos_token_ids == {0, 2}


def test_template_and_end_token_can_be_given(folder: Path) -> None:
    base = load_tokenizer_alone(str(folder), eos_token="<|endoftext|>", chat_template="{{ 1 }}")
    assert base.tokenizer.eos_token == "<|endoftext|>"
    assert base.tokenizer.chat_template == "{{ 1 }}"


def test_a_folder_that_is_none_or_damaged_is_one_message(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(OrpoError, match=r"config.json is damaged \(Expecting property name"):
        load_tokenizer_alone(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(OrpoError, match=r"^--model .*: no config.json in .*: not a model folder.$"):
        load_tokenizer_alone(str(folder))
