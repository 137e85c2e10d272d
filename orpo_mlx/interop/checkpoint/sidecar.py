"""The files next to a model's weights: tokenizer, chat template, generation settings, code."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import load_json_object, save_json
from orpo_mlx.model.rope import rope_settings
from orpo_mlx.model.safetensors import find_shards
from orpo_mlx.model.stored.folder_loader import head_settings
from orpo_mlx.model.stored.packing import is_stale, packing_settings
from orpo_mlx.public_names import without_paths
from orpo_mlx.tokenizer_files import (
    GENERATION,
    TEMPLATES,
    TOKENIZER_FILES,
    copy_tokenizer,
    own_tokenizer,
)

CONVERT_REPORT = "conversion_report.json"
WEIGHTS = {
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".npz", ".ckpt",
}  # fmt: skip
# Written again, or true of the source only.
_OWN = {"config.json", "README.md", "hf_quant_config.json", "adapter_config.json", CONVERT_REPORT}


def copy_sidecar(source: Path, folder: Path, *, leave: Collection[str] = ()) -> None:
    """Copy into `folder` what is neither weights nor written again, nor named in `leave`."""
    for file in sorted(source.iterdir()):
        own = file.name in _OWN or file.name.endswith(".index.json") or file.name.startswith(".")
        if file.is_file() and not (own or file.suffix in WEIGHTS or file.name in leave):
            shutil.copyfile(file, folder / file.name)
    if TEMPLATES not in leave and (templates := source / TEMPLATES).is_dir():
        shutil.copytree(templates, folder / TEMPLATES)
    remove_paths(folder)


def remove_paths(folder: Path) -> None:
    """Rewrite what names folders of this machine in the small JSON files of a folder for others."""
    for file in sorted(folder.glob("*.json")):
        if file.name in _NO_PATHS or file.name.endswith(".index.json"):
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # whoever needs it will report it
        if (public := without_paths(values)) != values:
            save_json(file, public)


CONFIG, TOKENIZER = "config.json", "tokenizer.json"
# A loader needs the path in the last one; the others are large.
_NO_PATHS = (TOKENIZER, "vocab.json", "adapter_config.json")


def write_sidecar(
    base: Path, run: Path, target: Path, *, dequantized: bool, dtype: str | None
) -> None:
    """Copy what belongs to the model; the tokenizer and its template are the run's, if it has one.

    Raises OrpoError if the config or a tokenizer's file is damaged.
    """
    own = own_tokenizer(run)
    copy_sidecar(base, target, leave=set(TOKENIZER_FILES if own else ()) - {GENERATION})
    if own:
        copy_tokenizer(own, target)
    if own and (run / GENERATION).is_file():
        ends = load_json_object(run / GENERATION)
        stored = load_json_object(base / GENERATION) if (base / GENERATION).is_file() else {}
        save_json(target / GENERATION, stored | ends)
    save_json(target / CONFIG, _config(base, dequantized=dequantized, dtype=dtype))
    remove_paths(target)


def vocabulary_notices(folder: Path, rows: int) -> list[str]:
    """A sentence if an adapter's tokenizer has tokens that the base has no embedding for."""
    file = folder / TOKENIZER
    if not file.is_file():
        return []
    content = load_json_object(file)
    try:
        vocabulary = content["model"].get("vocab") or {}
        words = (
            vocabulary
            if isinstance(vocabulary, Mapping)
            else {word: i for i, (word, *_) in enumerate(vocabulary)}
        )
        words = {**words, **{t["content"]: t["id"] for t in content.get("added_tokens") or []}}
        beyond = sorted((i, word) for word, i in words.items() if i >= rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OrpoError(f"{file} is damaged ({type(error).__name__}: {error}).") from None
    if not beyond:
        return []
    named = ", ".join(word for _, word in beyond[:3]) + (" ..." if len(beyond) > 3 else "")
    return [
        f"{folder}: its tokenizer has {len(beyond)} tokens ({named}) that the base has no "
        f"embedding for: it has {rows:,} rows. Text that holds one cannot be used. If the adapter "
        "was trained on a base with a resized embedding, name that base as --model."
    ]


def _config(base: Path, *, dequantized: bool, dtype: str | None) -> dict[str, Any]:
    """The base's config as it is stored, with rope and ties where every reader looks for them."""
    config = load_json_object(base / CONFIG)
    config |= head_settings(base, config, rope_settings(config))
    given = packing_settings(base, config)
    is_plain = dequantized or bool(given and is_stale(given, find_shards(base).tensors))
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        if is_plain:
            part.pop("quantization", None)
            part.pop("quantization_config", None)
        for key in ("dtype", "torch_dtype"):
            if dtype and key in part:
                part[key] = dtype
    return config
