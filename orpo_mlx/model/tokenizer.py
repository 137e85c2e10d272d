"""A base's tokenizer with its end tokens and chat template: loaded, and saved with an adapter."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_mlx.disk_errors import why_disk_refuses
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import load_json_object, remove, save_json, write_error
from orpo_mlx.model.mlx_lm_api import load_tokenizer
from orpo_mlx.tokenizer_files import (
    GENERATION,
    SPECIAL_TOKENS,
    TEMPLATE,
    TEMPLATES,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    copy_tokenizer,
    own_tokenizer,
    readable_config,
)

OWN_CODE = (
    "it needs Python code that comes with it. Read that code, and if you trust it, give "
    "--trust-remote-code"
)


def load_chat_tokenizer(
    base: Path,
    config: Mapping[str, Any],
    *,
    adapter: Path | None = None,
    eos_token: str | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """mlx-lm's tokenizer: the adapter's own, else the base's, whose config is `config`.

    Its end token and template are replaced where asked.
    """
    own = own_tokenizer(adapter)
    folder = own or base
    extra: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if chat_template is not None:
        extra["chat_template"] = chat_template
    if eos_token is not None:
        extra["eos_token"] = eos_token
    try:
        tokenizer = load_tokenizer(folder, extra, eos_token_ids=_end_ids(own, config))
    except Exception as error:
        # transformers names a field of config.json in the first line, its fault in the second.
        lines = str(error).strip().split("\n")[:2]
        reason = " ".join(" ".join(lines).split()) or type(error).__name__
        reason = OWN_CODE if "trust_remote_code" in str(error) else reason
        raise OrpoError(f"The tokenizer in {folder} cannot be loaded: {reason}") from error
    if eos_token is not None and eos_token not in _vocabulary(folder, tokenizer):
        raise OrpoError(f"--eos-token {eos_token}: not a token of this tokenizer.")
    if not tokenizer.eos_token_ids:
        raise OrpoError(
            f"The tokenizer in {folder} has no end token: give one with --eos-token TOKEN."
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, its template and its end tokens, each complete or not at all.

    They are the files that it was loaded from, changed where its end token or template was.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer.") as made:
            _write_files(tokenizer, Path(made))
            ends = {"eos_token_id": sorted(tokenizer.eos_token_ids)}
            (Path(made) / GENERATION).write_text(json.dumps(ends) + "\n", encoding="utf-8")
            written = {file.name for file in Path(made).iterdir()}
            for name in {*TOKENIZER_FILES} - written:  # of a tokenizer that was there before
                remove(folder / name)
            for name in sorted(written):
                if (Path(made) / name).is_dir():
                    remove(folder / name)
                (Path(made) / name).replace(folder / name)
    except Exception as error:  # tokenizers raises Exception itself
        if isinstance(error, OSError) or why_disk_refuses(error):
            raise write_error(folder, error) from error
        raise


def _write_files(tokenizer: Any, made: Path) -> None:
    source, config_file = Path(tokenizer.name_or_path or "/"), made / TOKENIZER_CONFIG
    whole = all((source / name).is_file() for name in (TOKENIZER_CONFIG, VOCABULARY_FILES[0]))
    stored = load_json_object(source / TOKENIZER_CONFIG) if whole else {}
    if not stored or "auto_map" in stored:  # other files make it, or code does
        tokenizer.save_pretrained(made)
        save_json(config_file, readable_config(load_json_object(config_file)))
        return
    copy_tokenizer(source, made)
    config, special = dict(stored), _special_tokens(made)
    if (eos := _changed_end(tokenizer, stored, special)) is not None:
        config["eos_token"] = eos
        if special:
            save_json(made / SPECIAL_TOKENS, special | {"eos_token": eos})
    template = tokenizer.chat_template
    is_changed = isinstance(template, str) and template != _stored_template(source, stored)
    if is_changed:
        config.pop("chat_template", None)
        remove(made / TEMPLATES)
        (made / TEMPLATE).write_text(template, encoding="utf-8")
    if (is_changed or eos is not None) and (written := readable_config(config)) != stored:
        save_json(config_file, written)


def _special_tokens(folder: Path) -> dict[str, Any]:
    file = folder / SPECIAL_TOKENS
    return load_json_object(file) if file.is_file() else {}


def _changed_end(
    tokenizer: Any, stored: Mapping[str, Any], special: Mapping[str, Any]
) -> str | None:
    """The end token, if it is another than the stored one."""
    before = stored.get("eos_token") or special.get("eos_token")
    text = before.get("content") if isinstance(before, dict) else before
    given = tokenizer.init_kwargs.get("eos_token")
    return None if given is None or str(given) == text else str(given)


def _stored_template(source: Path, stored: Mapping[str, Any]) -> Any:
    if (source / TEMPLATE).is_file():
        return (source / TEMPLATE).read_text(encoding="utf-8")
    return stored.get("chat_template")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of the files that a tokenizer was loaded from, or of the tokenizer itself."""
    folder = Path(tokenizer.name_or_path)
    files = [file for name in VOCABULARY_FILES if (file := folder / name).is_file()]
    contents = [file.read_bytes() for file in files]
    if not contents:
        contents = [json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _end_ids(own: Path | None, config: Mapping[str, Any]) -> list[int] | None:
    """The end tokens: what came with the adapter's own tokenizer, else the base's."""
    eos_ids = config.get("eos_token_id")
    if own and (file := own / GENERATION).is_file():
        try:
            eos_ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id", eos_ids)
        except (ValueError, AttributeError) as error:
            raise OrpoError(f"{file} is damaged ({error}).") from None
    return [eos_ids] if isinstance(eos_ids, int) else eos_ids


def _vocabulary(folder: Path, tokenizer: Any) -> set[str]:
    """The tokens of a folder as stored: an unknown one would be added silently."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return set(tokenizer.get_vocab())
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        words = vocabulary if isinstance(vocabulary, dict) else [word for word, _ in vocabulary]
        return {*words, *(token["content"] for token in content.get("added_tokens", []))}
    except (ValueError, KeyError, TypeError):
        return set(tokenizer.get_vocab())
