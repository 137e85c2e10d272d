"""Whether the head of a stored model is its embedding: by the numbers, as transformers decides.

mlx-lm goes by the config alone, and drops a head that a config calls tied.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.mlx_lm_api import get_classes
from orpo_mlx.model.safetensors import Shards

T = TypeVar("T")
TIE = "tie_word_embeddings"
HEADS = ("lm_head", "output", "embed_out", "output_layer")
EMBEDDINGS = ("embed_tokens", "tok_embeddings", "wte", "word_embeddings", "embed_in", "embeddings")


class Head(NamedTuple):
    """What the numbers say about a model's head."""

    copies: list[str]  # stored tensors that are the embedding's once more
    tied: bool | None  # None: the config is right, or nothing is stored to judge it by
    notices: list[str]


def judge_head(shards: Shards, config: Mapping[str, Any]) -> Head:
    """Compare the stored head, if there is one, with the embedding.

    Raises OrpoError for a head of its own where mlx-lm's model has none, or of other rows.
    """
    unchanged = Head([], None, [])
    if config.get("model_file") or not config.get("model_type"):
        return unchanged
    stored, wanted = head_tensors(shards.files), stored_tie(config)
    own = has_head(config)
    if not stored:
        # mlx-lm ties where nothing is written down, transformers perhaps not.
        silent = wanted is False and TIE not in config and not own
        return unchanged._replace(tied=True) if silent else unchanged
    embedding = _embedding_of(shards, stored)
    if embedding is None and not own:
        _refuse_other_rows(shards, stored)
    if embedding is None or (own and not wanted):
        return unchanged
    if _same(shards, stored, embedding):
        tied = not has_head(with_tie(config, True), stored=False)
        return Head(stored, True, []) if tied else unchanged
    return unchanged if own else _untied(stored[0], f"{embedding}.weight", config)


def _untied(head: str, embedding: str, config: Mapping[str, Any]) -> Head:
    if not has_head(with_tie(config, False)):
        raise OrpoError(
            f"{head} differs from {embedding}, so that the model has a head of its own, but "
            f"mlx-lm's model of type {config['model_type']} computes its head from the embedding."
        )
    notice = (
        f"{head} differs from {embedding}: it is loaded as a head of its own, as transformers "
        f"does, although {TIE} in config.json is not false. What is written says false."
    )
    return Head([], False, [notice])


def head_tensors(names: Iterable[str]) -> list[str]:
    """The names, of tensors or parameters, that are a head's."""
    return [n for n in names if _is_outside(n) and n.split(".")[-2] in HEADS]


def without_copies(stored: Mapping[str, T], parameters: Iterable[str]) -> dict[str, T]:
    """The stored tensors without those of a head that the model does not have."""
    copies = set() if head_tensors(parameters) else {*head_tensors(stored)}
    return {name: tensor for name, tensor in stored.items() if name not in copies}


def has_head(config: Mapping[str, Any], stored: bool = True) -> bool:
    """Whether mlx-lm's model has a head, where one is stored or not."""
    model_class, arguments = get_classes(dict(config))
    model: nn.Module = model_class(arguments.from_dict(dict(config)))
    if not stored:
        with suppress(Exception):  # some need tensors, and keep their head
            model.sanitize({})  # gemma3_text removes its head here
    return bool(head_tensors(name for name, _ in tree_flatten(model.parameters())))


def has_equal_head(shards: Shards) -> bool:
    """Whether a folder's stored head is a copy of its embedding."""
    head = head_tensors(shards.files)
    embedding = _embedding_of(shards, head)
    return embedding is not None and _same(shards, head, embedding)


def with_tie(config: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """A config with this flag wherever mlx-lm and transformers look for it."""
    changed = {**config, TIE: tied}
    if isinstance(text := config.get("text_config"), dict):
        changed["text_config"] = {**text, TIE: tied}
    return changed


def stored_tie(config: Mapping[str, Any]) -> bool | None:
    """Whether transformers ties head and embedding; None for types that it does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    text = config.get("text_config") or {}
    given = config.get(TIE, text.get(TIE))
    if given is not None:
        return bool(given)
    try:
        return bool(CONFIG_MAPPING[config["model_type"]].tie_word_embeddings)
    except (KeyError, AttributeError, ImportError):
        return None


def _is_outside(name: str) -> bool:
    """Whether a tensor belongs to no block: blocks are numbered."""
    parts = name.split(".")
    return len(parts) > 1 and not any(part.isdigit() for part in parts)


def _embedding_of(shards: Shards, head: list[str]) -> str | None:
    """The path of the embedding that a head could be a copy of."""
    weight = next((name for name in head if name.endswith(".weight")), None)
    if weight is None:
        return None
    rows = shards.tensors[weight].shape[0]
    fits = (p for p, count in _embeddings(shards).items() if count == rows)
    return min(fits, key=len, default=None)


def _embeddings(shards: Shards) -> dict[str, int]:
    """The rows of each embedding outside the blocks, by path."""
    return {
        name.removesuffix(".weight"): tensor.shape[0]
        for name, tensor in shards.tensors.items()
        if name.endswith(".weight") and _is_outside(name) and name.split(".")[-2] in EMBEDDINGS
    }


def _refuse_other_rows(shards: Shards, head: list[str]) -> None:
    """Raise OrpoError for a head that no embedding could be: mlx-lm would drop it."""
    known = _embeddings(shards)
    if not known or not (weights := [name for name in head if name.endswith(".weight")]):
        return
    path = min(known, key=len)
    raise OrpoError(
        f"{weights[0]} has {shards.tensors[weights[0]].shape[0]:,} rows, {path}.weight "
        f"{known[path]:,}: head and embedding do not belong together. Take another copy of the "
        "model."
    )


def _same(shards: Shards, head: list[str], embedding: str) -> bool:
    """Whether a head, quantized or not, has an embedding's tensors, all equal."""
    path = head[0].rpartition(".")[0]
    leaves = {name.removeprefix(f"{path}.") for name in head}
    names = [n for n in shards.files if n.startswith(f"{embedding}.")]
    if leaves != {name.removeprefix(f"{embedding}.") for name in names}:
        return False
    pairs = [(f"{path}.{leaf}", f"{embedding}.{leaf}") for leaf in leaves]
    return all(bool(mx.array_equal(*map(_reader(shards), pair)).item()) for pair in pairs)


def _reader(shards: Shards) -> Any:
    def read(name: str) -> mx.array:
        held: Any = mx.load(str(shards.files[name]))
        value: mx.array = held[name]
        return value

    return read
