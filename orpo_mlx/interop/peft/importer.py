"""`import`: a PEFT adapter as one of mlx-lm's: one rank, one scale, the last N blocks."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from orpo_mlx.config.interop import ImportConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_apart, check_new_folder, replacing, user_path
from orpo_mlx.hub_errors import fetch_snapshot
from orpo_mlx.interop.checkpoint.module_map import ModuleMap, map_modules
from orpo_mlx.interop.checkpoint.sidecar import vocabulary_notices
from orpo_mlx.interop.peft.config import PEFT_CONFIG, PeftSettings, read_peft_config
from orpo_mlx.interop.peft.exporter import PEFT_WEIGHTS, tensors_if_any
from orpo_mlx.interop.peft.locate import ModuleAdapter, find_factors
from orpo_mlx.interop.peft.tensors import Factors, pad_to_rank, scale_factors
from orpo_mlx.model.adapters import save_adapter
from orpo_mlx.model.base import find_model, load_weights, model_settings, vocabulary_rows
from orpo_mlx.model.dequantize import packing_of, plain_weight, usual_dtype
from orpo_mlx.model.safetensors import read_header
from orpo_mlx.run_folder.lock import check_free
from orpo_mlx.tokenizer_files import TOKENIZER_FILES, copy_tokenizer, own_tokenizer

FLOATS = ("F32", "F16", "BF16")


class Imported(NamedTuple):
    """What was written."""

    output: Path
    base: str
    kind: str  # lora or dora
    rank: int
    scale: float
    num_layers: int
    modules: int
    padded: int  # modules that PEFT had with a smaller rank, or not at all


def import_peft(config: ImportConfig, report: Callback = lambda event: None) -> Imported:
    """Write a PEFT adapter in mlx-lm's layout.

    Raises OrpoError, with every module and key, for what that layout cannot hold.
    """
    check_free(config.output)
    check_new_folder(config.output, report, overwrite=config.overwrite)
    name = f"Adapter {config.adapter}"
    source = _find_adapter(config.adapter, config.adapter_revision)
    check_apart(config.output, "adapter", source)
    settings = read_peft_config(source, name)
    tensors = _load(source / PEFT_WEIGHTS, name)
    folder = find_model(config.model, revision=config.revision)
    check_apart(config.output, "base", folder)
    module_map = map_modules(model_settings(folder), tensors_if_any(folder))
    base = _Base(folder, config)
    adapters, notices = find_factors(tensors, settings, module_map, base.weight, name)
    adapter, layout = _mlx_layout(adapters, settings, module_map, base, notices)
    for text in notices:
        report(Notice(text))
    layout |= {"model": config.model, "revision": config.revision}
    with replacing(config.output) as made:
        made.mkdir()
        save_adapter(made, adapter, layout)
        if own_tokenizer(source):
            copy_tokenizer(source, made)
            for text in vocabulary_notices(source, vocabulary_rows(base.model)):
                report(Notice(text, warning=True))
    if settings.base and not _same_base(settings.base, config.model):
        report(Notice(f"It was made for {settings.base}: {config.model} must hold that model."))
    parameters = layout["lora_parameters"]
    modules = {key.rpartition(".")[0] for key in adapter}
    return Imported(
        config.output,
        config.model,
        layout["fine_tune_type"],
        parameters["rank"],
        parameters["scale"],
        layout["num_layers"],
        len(modules),
        sum(
            path not in adapters or _rank(adapters[path].factors) < parameters["rank"]
            for path in modules
        ),
    )


def _same_base(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == user_path(other).resolve()


class _Base:
    """The base's weights, loaded when one is asked for."""

    def __init__(self, folder: Path, config: ImportConfig):
        self.folder, self.config = folder, config

    @cached_property
    def model(self) -> nn.Module:
        """The model, no tensor of it read yet."""
        return load_weights(
            self.folder,
            self.config.model,
            lazy=True,
            trust_remote_code=self.config.trust_remote_code,
        )[0]

    @cached_property
    def modules(self) -> dict[str, Any]:
        """The modules by path."""
        return dict(self.model.named_modules())

    def weight(self, path: str) -> tuple[mx.array, bool]:
        """The weight of a module in float32, and whether it is a quantized one's."""
        module = self.modules[path]
        if packing_of(module) is None:
            return plain_weight(module), False
        # As mlx-lm's DoRA does, whose norms these must be.
        return plain_weight(module, usual_dtype(module)).astype(mx.float32), True


def _find_adapter(adapter: str, revision: str | None) -> Path:
    """The folder of a PEFT adapter, fetched from the Hub if it is an id."""
    folder = user_path(adapter)
    if not folder.exists():
        wanted = [PEFT_WEIGHTS, PEFT_CONFIG, *TOKENIZER_FILES]
        folder = fetch_snapshot(adapter, revision, wanted, f"Adapter {adapter}")
    if (folder / PEFT_WEIGHTS).is_file():
        return folder
    pickled = sorted(p.name for p in folder.glob("adapter_model*") if p.name != PEFT_WEIGHTS)
    if pickled:
        raise OrpoError(
            f"Adapter {adapter}: {pickled[0]} is never loaded: pickle can run code. If you trust "
            "it, load it in PEFT and save it again with save_pretrained(), which writes "
            "safetensors."
        )
    if (folder / "adapters.safetensors").is_file():
        raise OrpoError(f"Adapter {adapter} is one of mlx-lm's already: use it with --adapter.")
    raise OrpoError(f"Adapter {adapter}: no {PEFT_WEIGHTS} in {folder}: not a PEFT adapter.")


def _load(file: Path, name: str) -> dict[str, mx.array]:
    """The tensors of a file whose header was checked: numbers, and finite."""
    header = read_header(file)
    wrong = [f"{n}: its type is {t.dtype}" for n, t in header.items() if t.dtype not in FLOATS]
    if not header:
        wrong = ["it has no tensors"]
    if wrong:
        raise collected(f"{name}: {PEFT_WEIGHTS} is not an adapter's:", wrong)
    try:
        tensors: Any = mx.load(str(file))
        mx.eval(tensors)
    except (RuntimeError, ValueError) as error:
        raise OrpoError(f"{file} cannot be read: {error}") from None
    wrong = [n for n, value in tensors.items() if not mx.isfinite(value).all().item()]
    if wrong:
        raise collected(f"{name}: {PEFT_WEIGHTS} has NaN or infinite values:", wrong)
    return dict(tensors)


def _mlx_layout(
    adapters: Mapping[str, ModuleAdapter],
    settings: PeftSettings,
    module_map: ModuleMap,
    base: _Base,
    notices: list[str],
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """mlx-lm's tensors and config; adds what was padded to `notices`."""
    rank = max(_rank(f.factors) for f in adapters.values())
    scales = {f.scale for f in adapters.values()}
    uniform = len(scales) == 1
    scale = scales.pop() if uniform else 1.0
    inside = {
        path: module_map.block_paths[path] for path in adapters if path in module_map.block_paths
    }
    first = min((block for block, _ in inside.values()), default=0)
    names = {name for _, name in inside.values()}
    wanted = [p for p in adapters if p not in inside]
    wanted += [
        path
        for path, (block, name) in module_map.block_paths.items()
        if block >= first
        and name in names
        and (path in module_map.modules or path in module_map.refused)
    ]
    tensors: dict[str, mx.array] = {}
    added = []
    for path in wanted:
        if path in adapters:
            factors = scale_factors(
                adapters[path].factors, 1.0 if uniform else adapters[path].scale
            )
        else:
            added.append(path)
            factors = _nothing(path, module_map, settings, base)
        a, b, m = pad_to_rank(factors, rank)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        tensors |= {f"{path}.m": m} if m is not None else {}
    if wrong := [n for n, value in tensors.items() if not mx.isfinite(value).all().item()]:
        raise collected("Multiplied by alpha / rank, these are too large for float32:", wrong)
    notices += _padding_notices(adapters, rank, scale, added, module_map.blocks - first)
    keys = sorted({*names, *(p for p in adapters if p not in inside)})
    return tensors, {
        "fine_tune_type": "dora" if settings.dora else "lora",
        "num_layers": module_map.blocks - first,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    }


def _rank(factors: Factors) -> int:
    return factors.a.shape[1]


def _nothing(path: str, module_map: ModuleMap, settings: PeftSettings, base: _Base) -> Factors:
    """An adapter that changes nothing, for a module that PEFT left alone."""
    peft_module = module_map.modules.get(path)
    shape = peft_module.shape if peft_module else base.weight(path)[0].shape
    if len(shape) == 3:
        count, out, size = shape
        return Factors(mx.zeros((count, 1, size)), mx.zeros((count, out, 1)))
    out, size = shape
    # DoRA divides by the row's norm and multiplies by m.
    norms = mx.linalg.norm(base.weight(path)[0], axis=1) if settings.dora else None
    return Factors(mx.zeros((size, 1)), mx.zeros((1, out)), norms)


def _padding_notices(
    adapters: Mapping[str, ModuleAdapter], rank: int, scale: float, added: list[str], layers: int
) -> list[str]:
    """What had to be written differently; equal in effect."""
    notices = []
    small = {_rank(f.factors) for f in adapters.values()} - {rank}
    if small:
        notices.append(
            f"mlx-lm knows one rank: modules of rank {', '.join(map(str, sorted(small)))} are "
            f"padded to {rank} with zeros, which changes no value."
        )
    if any(f.scale != scale for f in adapters.values()):
        notices.append("mlx-lm knows one scale: those of this adapter are multiplied into lora_b.")
    if added:
        notices.append(
            f"mlx-lm adapts the same modules in the last {layers} blocks: {len(added)} modules "
            f"that this adapter leaves alone get zeros (the first: {added[0]})."
        )
    return notices
