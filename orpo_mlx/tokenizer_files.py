"""The files of a tokenizer, and whose tokenizer an adapter is used with."""

import shutil
from pathlib import Path

CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
# What decides the ids of a text; the order is part of every cache key.
VOCABULARY_FILES = (
    "tokenizer.json",
    CONFIG,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "vocab.txt",
    "chat_template.jinja",
    GENERATION,
    "additional_chat_templates",
)


def own_tokenizer(adapter: Path | None) -> Path | None:
    """The adapter's folder if it holds a tokenizer; None where the base's is used."""
    return adapter if adapter and (adapter / CONFIG).is_file() else None


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer and its chat template; its end tokens belong to a model and stay."""
    for name in TOKENIZER_FILES:
        if name == GENERATION:
            continue
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, target / name)
