"""The files of a tokenizer, and whose tokenizer an adapter is used with.

Knows nothing of how a tokenizer is loaded.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENIZER_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# What decides the ids of a text; the order is part of every cache key.
VOCABULARY_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    SPECIAL_TOKENS,
    "added_tokens.json",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "vocab.txt",
    TEMPLATE,
    GENERATION,
    TEMPLATES,
)
# Keys that show a config to be a loaded object's, saved by transformers 5, not its publisher's.
SAVED_OBJECT = {"is_local", "local_files_only"}


def own_tokenizer(adapter: Path | None) -> Path | None:
    """The adapter's folder if it holds a tokenizer; None where the base's is used."""
    return adapter if adapter and (adapter / TOKENIZER_CONFIG).is_file() else None


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer and its chat template; its end tokens belong to a model and stay."""
    for name in TOKENIZER_FILES:
        if name == GENERATION:
            continue
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, target / name)
    _make_readable(target / TOKENIZER_CONFIG)


def readable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config as transformers 4 reads it, too, which 5 changes when it saves one."""
    readable = {k: v for k, v in config.items() if k not in {*SAVED_OBJECT, "backend"}}
    if readable.get("tokenizer_class") == "TokenizersBackend":
        readable["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(readable.get("extra_special_tokens"), list):  # 4 wants a name for each there
        extra = readable.pop("extra_special_tokens")
        readable.setdefault("additional_special_tokens", extra)
    return readable


def _make_readable(file: Path) -> None:
    """What reads a damaged config reports it."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        saved = SAVED_OBJECT & config.keys()
    except (OSError, ValueError, AttributeError):
        return
    if saved:
        text = json.dumps(readable_config(config), indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
