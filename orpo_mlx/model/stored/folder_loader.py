"""What mlx-lm's loader is given of a model folder, which it would read whole and believe.

It reads every file of weights that is there; here the index decides.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.mlx_lm_api import get_classes, load_model
from orpo_mlx.model.safetensors import Shards, find_shards, stray_notices

Tensors = dict[str, mx.array]
Change = Callable[[Tensors], Tensors]


class Loading(NamedTuple):
    """How the weights of a folder are loaded."""

    folder: Path
    shards: Shards
    changes: Sequence[Change]  # of the stored tensors, before the model's own sanitize
    notices: list[str]


def plan_loading(folder: Path) -> Loading:
    """Raises OrpoError for a folder whose files do not fit each other."""
    shards = find_shards(folder)
    changes = [_as_indexed(repeated)] if (repeated := shards.repeated()) else []
    return Loading(folder, shards, changes, stray_notices(folder, shards))


def load_planned(
    loading: Loading,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],  # put over the folder's config
    *,
    lazy: bool,
    trust_remote_code: bool,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its config, as mlx-lm loads them."""
    if loading.changes and config.get("model_file"):
        raise OrpoError(
            "its weights are not plain tensors under one name each, and it has its own code "
            "(model_file), which may expect them as they are. Take a copy in 16 bits."
        )
    with _only_files(loading) as source:
        model, loaded = load_model(
            source,
            lazy,
            model_config=dict(settings),
            get_model_classes=_changed_classes(loading.changes),
            trust_remote_code=trust_remote_code,
        )
    if loading.changes:
        del model.sanitize  # ours
    return model, loaded


def _as_indexed(files: Mapping[str, Path]) -> Change:
    """Tensors that are in two files come from the one that the index names."""

    def change(tensors: Tensors) -> Tensors:
        for name, file in files.items():
            held: Any = mx.load(str(file))
            tensors[name] = held[name]
        return tensors

    return change


@contextmanager
def _only_files(loading: Loading) -> Iterator[Path]:
    """The folder, or one of links to it without the files that are not part of the model."""
    if not loading.shards.strays:
        yield loading.folder
        return
    with tempfile.TemporaryDirectory(prefix="orpo-mlx-") as made:
        links = Path(made)
        for file in loading.folder.iterdir():
            if file.name not in loading.shards.strays:
                (links / file.name).symlink_to(file.resolve())
        yield links


def _changed_classes(changes: Sequence[Change]) -> Callable[[dict[str, Any]], tuple[Any, Any]]:
    """mlx-lm's classes of a config; a model's sanitize is given the changed tensors."""
    if not changes:
        return get_classes

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, arguments = get_classes(config)
        return lambda made: _with_changes(model_class(made), changes), arguments

    return classes


def _with_changes(model: Any, changes: Sequence[Change]) -> Any:
    own = getattr(model, "sanitize", lambda tensors: tensors)

    def sanitize(tensors: Tensors) -> Tensors:
        for change in changes:
            tensors = change(tensors)
        made: Tensors = own(tensors)
        return made

    model.sanitize = sanitize
    return model
