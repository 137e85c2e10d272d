"""A Hugging Face or GGUF model as an MLX folder, quantized if asked; or the reverse.

mlx-lm loads, casts and quantizes; tensors are read, computed and written one by one.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import (
    check_apart,
    check_new_folder,
    check_room,
    replacing,
    size_text,
    user_path,
)
from orpo_mlx.interop.checkpoint.folder import plain_checkpoint, save_checkpoint_folder
from orpo_mlx.interop.checkpoint.shards import save_arrays
from orpo_mlx.interop.checkpoint.sidecar import copy_sidecar
from orpo_mlx.interop.checkpoint.transformers_rules import check_as_transformers
from orpo_mlx.interop.convert.divergence import Divergence, measure_divergence, save_report
from orpo_mlx.interop.convert.quantize import cast_parameters, quantize
from orpo_mlx.interop.gguf.to_hf import convert_gguf
from orpo_mlx.leftovers import scratch_folder
from orpo_mlx.model.base import find_model, load_weights
from orpo_mlx.model.mlx_lm_api import get_total_parameters, load_config, save_config
from orpo_mlx.model.rope import rope_notices, rope_settings
from orpo_mlx.model.safetensors import StoredTensor, read_tensors
from orpo_mlx.model.stored.heads import without_copies
from orpo_mlx.run_folder.lock import check_free

TOWERS = ("vision_config", "audio_config")


class Converted(NamedTuple):
    """What was written."""

    folder: Path
    source_bytes: int  # of weights
    size_bytes: int  # of weights
    bits_per_weight: float
    divergence: Divergence | None


class Loaded(NamedTuple):
    """The source: its model, whose values are not read yet, its config and its files' headers."""

    model: nn.Module
    config: dict[str, Any]
    stored: dict[str, StoredTensor]


def convert(options: ConvertConfig, report: Callback) -> Converted:
    """Convert as asked, into a folder that is written whole or not at all.

    Raises OrpoError if the source cannot be read or made into what was asked, if the disk is too
    small, or if the folder exists and was not to be replaced.
    """
    check_free(options.output)
    check_new_folder(options.output, report, overwrite=options.overwrite)
    with _source_folder(options, report) as source:
        check_apart(options.output, "source", source)
        with replacing(options.output) as folder:
            folder.mkdir()
            written = _write(source, folder, options, report)
            if options.report:
                divergence = measure_divergence(source, folder, options, report)
                save_report(divergence, folder)
                written = written._replace(divergence=divergence)
    return written._replace(folder=options.output)


@contextmanager
def _source_folder(options: ConvertConfig, report: Callback) -> Iterator[Path]:
    """The folder of the source; a GGUF file becomes a temporary one."""
    file = user_path(options.source)
    if file.suffix.lower() != ".gguf":
        yield find_model(options.source, revision=options.revision, flag="SOURCE")
        return
    if options.dequantize:
        raise OrpoError(f"--dequantize: {file} becomes a plain folder anyway: leave it out.")
    check_apart(options.output, "source", file)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(options.output.absolute()) as scratch:
        report(Notice(f"Reading {file}."))
        convert_gguf(file, scratch / file.stem)
        yield scratch / file.stem


def _write(source: Path, folder: Path, options: ConvertConfig, report: Callback) -> Converted:
    stored = read_tensors(source)
    model, config, notices = load_weights(
        source,
        options.source,
        trust_remote_code=options.trust_remote_code,
        lazy=True,
        flag="SOURCE",
    )
    about_rope = rope_notices(rope_settings(load_config(source)))  # solved by what is written
    for text in notices:
        if text not in about_rope:
            report(Notice(text))
    write = _write_plain if options.dequantize else _write_mlx
    source_bytes = sum(tensor.size_bytes for tensor in stored.values())
    parameters = [name for name, _ in tree_flatten(model.parameters())]
    loaded = Loaded(model, config, without_copies(stored, parameters))
    size, bits = write(loaded, source, folder, options, report)
    check_as_transformers(folder)
    return Converted(folder, source_bytes, size, bits, None)


def _write_plain(
    loaded: Loaded, source: Path, folder: Path, options: ConvertConfig, report: Callback
) -> tuple[int, float]:
    """Bytes of the weights that were written, and bits of each."""
    plain = plain_checkpoint(*loaded, options.dtype, report)
    arrays = plain.tensors.values()
    bits = sum(v.nbytes for v in arrays) * 8 / sum(v.size for v in arrays)
    size_notice(loaded.stored.values(), arrays, folder, report)
    return save_checkpoint_folder(plain, source, folder, report), bits


def _write_mlx(
    loaded: Loaded, source: Path, folder: Path, options: ConvertConfig, report: Callback
) -> tuple[int, float]:
    """Bytes of the weights that were written, and bits of each."""
    model, config = loaded.model, loaded.config
    _log_rope(source, report)
    if not _keeps_towers(model) and any(tower in config for tower in TOWERS):
        report(Notice("mlx-lm keeps only the text part: towers for images and sound are left out."))
    cast_parameters(model, config, options.dtype)
    before: dict[str, mx.array] = {}
    if options.quantizes:
        model, config, notices, before = quantize(model, config, options)
        for notice in notices:
            report(Notice(notice))
    arrays = (value for _, value in tree_flatten(model.parameters()))
    size_notice(loaded.stored.values(), arrays, folder, report)
    parameters = get_total_parameters(model)
    size = save_mlx_folder(model, config, source, folder, report, before)
    return size, size * 8 / parameters


def _keeps_towers(model: nn.Module) -> bool:
    """Whether mlx-lm kept the vision tower, as its own save_config asks."""
    return "vision_tower" in (model.get("model") or {})


def _log_rope(source: Path, report: Callback) -> None:
    """Report which settings of transformers 5 the new config has where mlx-lm looks for them."""
    placed = [key for key, value in rope_settings(load_config(source)).items() if value is not None]
    if placed:
        it = "it" if len(placed) == 1 else "them"
        report(
            Notice(
                f"{', '.join(placed)}: written into config.json where mlx-lm reads {it}; "
                f"transformers 5 had {it} elsewhere."
            )
        )


def save_mlx_folder(
    model: nn.Module,
    config: dict[str, Any],
    source: Path,
    folder: Path,
    report: Callback,
    before: dict[str, mx.array] | None = None,  # the weights that were quantized; emptied
) -> int:
    """Write a folder as mlx-lm writes one; the model is emptied. Returns the weights' bytes."""
    facts = {"total_parameters": get_total_parameters(model)}
    keep = _keeps_towers(model)
    arrays = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    size = save_arrays(folder, arrays, layout="mlx", report=report, facts=facts, before=before)
    save_config(dict(config), folder / "config.json", keep_vision_config=keep)
    copy_sidecar(source, folder)
    return size


def size_notice(
    stored: Iterable[StoredTensor], arrays: Iterable[mx.array], folder: Path, report: Callback
) -> None:
    """Report the size to be written; raises OrpoError if the disk has no room for it."""
    before, after = ([t.size_bytes for t in stored], [v.nbytes for v in arrays])
    check_room(folder, sum(after))
    free = shutil.disk_usage(folder).free
    report(
        Notice(
            f"{size_text(sum(before))} of weights become {size_text(sum(after))}, on disk and in "
            f"memory to run them (free on this disk: {size_text(free)}). The largest tensor takes "
            f"{size_text(max(before + after))}; converting holds a few of that size."
        )
    )
