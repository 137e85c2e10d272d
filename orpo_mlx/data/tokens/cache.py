"""Which cached token ids belong to a source: a key from all that they follow from.

The key is made from the files' content and names, not from their dates; digests of unchanged files
are kept.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from orpo_mlx import backend
from orpo_mlx.data.reading.sources import Source
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.data.tokens.store import FACTS, PAIRS_FILE, Store
from orpo_mlx.errors import OrpoError
from orpo_mlx.files import check_writable, remove, replacing
from orpo_mlx.leftovers import is_left

# Raised whenever the same rows become other ids or other facts.
FORMAT = 3
DIGESTS = "digests.json"
# A file changed within the grain of its time stamp after it was read looks unchanged.
GRAIN_SECONDS = 2
# Entries up to this size are verified in full when they are opened (0.2 s), others batch by batch.
VERIFIED_BYTES = 200_000_000
KEPT_SECONDS = 30 * 24 * 3600


def token_cache() -> Path:
    """The folder of cached token ids."""
    return backend.cache_folder() / "tokens"


def key_of(source: Source, encoder: Encoder, facts: Mapping[str, Any]) -> str:
    """What the ids of a source follow from, in one name; `facts` is how its rows are read."""
    template, tokenizer = encoder.template_text(), encoder.tokenizer
    content = {
        "format": FORMAT,
        "files": [digest_of(file) for file in source.files],
        "labels": source.labels,
        "facts": dict(facts),
        "tokenizer": encoder.fingerprint,
        "ends": sorted(encoder.end_ids),
        "eos": tokenizer.eos_token_id,
        "template": template,
        "date": encoder.date.isoformat() if "strftime_now" in template else "",
        "arguments": dict(encoder.arguments),
        "thinking": [encoder.thinking, encoder.thinking_argument],
        "lengths": [encoder.max_seq_length, encoder.max_prompt_length],
        "versions": [metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_entry(folder: Path) -> Store | None:
    """The store of an entry, None if there is none; a damaged one is removed."""
    if not folder.exists():
        return None
    try:
        store = Store(folder)
        if (folder / PAIRS_FILE).stat().st_size <= VERIFIED_BYTES:
            store.verify()
        (folder / FACTS).touch()
        return store
    except (OSError, ValueError, KeyError, TypeError, OrpoError):
        remove(folder)
        return None


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content; remembered while size, times and inode stay the same."""
    known = _load_digests()
    name, state = str(file.resolve()), _state(file)
    if known.get(name, {}).get("state") == state:
        return str(known[name]["digest"])
    started = time.time()
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if started - max(state[1], state[2]) / 1e9 > GRAIN_SECONDS and _state(file) == state:
        known = _load_digests() | {name: {"state": state, "digest": digest}}
        try:
            with replacing(token_cache() / DIGESTS) as new:
                new.write_text(json.dumps(known), encoding="utf-8")
        except OrpoError:
            return digest  # a cache that cannot be written is reported where the ids are
    return digest


def writable_cache() -> tuple[Path | None, str]:
    """The folder of cached ids, or None and why nothing can be kept there."""
    try:
        check_writable(token_cache())
    except OrpoError as error:
        return None, (
            f"{error} Token ids are kept for this run only; set ORPO_MLX_CACHE to another folder."
        )
    return token_cache(), ""


def prune() -> None:
    """Remove entries that nobody used for a month, and what killed runs left."""
    oldest = time.time() - KEPT_SECONDS
    for folder in token_cache().glob("*"):
        with suppress(OSError):  # another process may remove it, too
            facts = folder / FACTS
            used = facts if facts.exists() else folder
            name = folder.name.removeprefix(".").partition(".")[0]
            left = folder.name.startswith(".") and is_left(folder, name)
            if folder.is_dir() and (left or used.stat().st_mtime < oldest):
                remove(folder)


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _load_digests() -> dict[str, Any]:
    try:
        known = json.loads((token_cache() / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
