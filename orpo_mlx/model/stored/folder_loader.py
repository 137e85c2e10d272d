"""What mlx-lm's loader is given of a model folder, which it would read whole and believe.

It reads every file of weights that is there; here the index decides. FP8 is decoded first.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.model.mlx_lm_api import get_classes, load_model
from orpo_mlx.model.safetensors import Shards, find_shards, stray_notices
from orpo_mlx.model.stored.fp8 import Fp8
from orpo_mlx.model.stored.heads import TIE, Head, head_tensors, judge_head, with_tie
from orpo_mlx.model.stored.packing import (
    ORIGINAL,
    describe,
    is_packed,
    is_stale,
    packing_settings,
    read_fp8,
)

Tensors = dict[str, mx.array]
Change = Callable[[Tensors], Tensors]
QUANTIZATION = "quantization_config"


class Loading(NamedTuple):
    """How the weights of a folder are loaded."""

    folder: Path
    shards: Shards
    changes: Sequence[Change]  # of the stored tensors, before the model's own sanitize
    settings: dict[str, Any]  # put over the folder's config
    packing: str  # the tool that packed the weights, or ""
    notices: list[str]


def plan_loading(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> Loading:
    """How to load a folder; `settings` are put over its config anyway.

    Raises OrpoError for files that do not fit each other, and for weights that cannot be read.
    """
    shards = find_shards(folder)
    stored, given = shards.tensors, packing_settings(folder, config)
    notices, changes = stray_notices(folder, shards), []
    if repeated := shards.repeated():
        changes.append(_as_indexed(repeated))
    fp8 = read_fp8(stored, config, given)
    if fp8.weights:
        changes.append(fp8.decode)
        notices.append(_fp8_notice(fp8))
    plain = fp8.weights or is_stale(given, stored)
    changed = without_quantization(config, settings) if plain else dict(settings)
    head = judge_head(shards, {**config, **changed})
    if head.copies:
        changes.append(_without(head.copies))
    notices += head.notices
    changed = _with_head(head, config, changed)
    packing = describe(given) if is_packed(stored) and not plain else ""
    return Loading(folder, shards, changes, changed, packing, notices)


def without_quantization(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that also take a config's quantization away: its weights are plain."""
    changed = {**settings, QUANTIZATION: None}
    text = changed.get("text_config") or config.get("text_config")
    if isinstance(text, dict) and QUANTIZATION in text:
        changed["text_config"] = {k: v for k, v in text.items() if k != QUANTIZATION}
    return changed


def load_planned(
    loading: Loading, config: Mapping[str, Any], *, lazy: bool, trust_remote_code: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its config, as mlx-lm loads them."""
    if loading.changes and config.get("model_file"):
        raise OrpoError(
            "its weights are not plain tensors in one file each, and it has its own code "
            f"(model_file), which may expect them as they are. {ORIGINAL}"
        )
    try:
        with _only_files(loading) as source:
            model, loaded = load_model(
                source,
                lazy,
                model_config=loading.settings,
                get_model_classes=_changed_classes(loading.changes),
                trust_remote_code=trust_remote_code,
            )
    except (ValueError, KeyError) as error:
        if _lacks_head(error):
            raise OrpoError(
                f"no head is stored, and {TIE} in config.json is not true. Set it to true if the "
                "embedding is the head, too; else the folder is incomplete: take another copy."
            ) from error
        if not loading.packing:
            raise
        reason = (str(error).splitlines() or [""])[0].rstrip(" :,.")
        raise OrpoError(
            f"its weights are packed by {loading.packing}, which mlx-lm does not read for this "
            f"model ({reason}). {ORIGINAL}"
        ) from error
    if loading.changes:
        del model.sanitize  # ours
    if loaded.get(QUANTIZATION, True) is None:
        del loaded[QUANTIZATION]
    _refuse_integers(model, loaded)
    return model, loaded


def head_settings(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that also give whether the stored head is the embedding, if one is stored."""
    if not any(folder.glob("model*.safetensors")):
        return dict(settings)
    return _with_head(judge_head(find_shards(folder), {**config, **settings}), config, settings)


def _with_head(
    head: Head, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    if head.tied is None:
        return dict(settings)
    given = with_tie({**config, **settings}, head.tied)
    return {**settings, **{key: given[key] for key in (TIE, "text_config") if key in given}}


def _without(names: Sequence[str]) -> Change:
    return lambda tensors: {name: v for name, v in tensors.items() if name not in names}


def _fp8_notice(fp8: Fp8) -> str:
    dtypes = sorted({str(w.dtype).removeprefix("mlx.core.") for w in fp8.weights})
    return f"{len(fp8.weights)} weights stored in FP8 are decoded to {' and '.join(dtypes)}."


def _lacks_head(error: Exception) -> bool:
    """Whether mlx misses the head alone."""
    first, *names = (line.strip(" ,.") for line in str(error).splitlines())
    return "Missing" in first and bool(names) and head_tensors(names) == names


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


def _refuse_integers(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise OrpoError for codes that were loaded as if they were the numbers themselves."""
    modules = model.named_modules()
    odd: dict[str, Any] = {p: m for p, m in modules if "scales" not in m and _not_floating(m)}
    if not odd or config.get("model_file"):
        return
    model_class, arguments = get_classes(dict(config))
    fresh: dict[str, Any] = dict(model_class(arguments.from_dict(dict(config))).named_modules())
    wrong = [
        f"{path}.{name}: {str(module[name].dtype).removeprefix('mlx.core.')}"
        for path, module in odd.items()
        for name in _changed_types(fresh.get(path), module)
    ]
    if wrong:
        heading = f"these weights are stored as integers, of an unknown scale. {ORIGINAL}"
        raise collected(heading, wrong)


def _changed_types(fresh: Any, module: Any) -> set[str]:
    return _not_floating(module) - _not_floating(fresh) if type(fresh) is type(module) else set()


def _not_floating(module: nn.Module) -> set[str]:
    arrays = {name: v for name, v in module.items() if isinstance(v, mx.array)}
    return {name for name, v in arrays.items() if not mx.issubdtype(v.dtype, mx.floating)}
