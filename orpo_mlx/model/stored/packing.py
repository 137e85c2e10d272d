"""Which tool packed a checkpoint's weights, and whether they can be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import load_json_object
from orpo_mlx.model.mlx_lm_api import get_classes
from orpo_mlx.model.safetensors import StoredTensor
from orpo_mlx.model.stored.fp8 import Fp8, find_fp8

PLAIN = ("F32", "F16", "BF16", "F64")
SCALED = ("", "fp8", "mxfp8")  # FP8 weights with scales of their own; "": nobody is named
# What mlx-lm's load_model reads: of each quant_method these formats, or all.
READ: dict[str, tuple[str, ...]] = {
    "fp8": (), "mxfp8": (), "mxfp4": (), "awq": (), "gptq": (), "bitnet": (),
    "modelopt": ("NVFP4",),
    "compressed-tensors": ("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"),
}  # fmt: skip
KEEP_PACKED = ("deepseek_v41", "minimax_m3_vl")  # mlx-lm makes MLX's mxfp8 of their FP8
MODELOPT = "hf_quant_config.json"
ORIGINAL = "Take the original in 16 bits, or a copy in MLX's format."
Settings = Mapping[str, Any]


def packing_settings(folder: Path, config: Mapping[str, Any]) -> Settings:
    """What other tools than MLX wrote about quantization, from where mlx-lm looks for it."""
    if "quantization" in config:
        return {}
    text = config.get("text_config") or {}
    given = config.get("quantization_config") or text.get("quantization_config")
    if given is None and (folder / MODELOPT).is_file():
        given = {"quant_method": "modelopt", **load_json_object(folder / MODELOPT)}
    return given if isinstance(given, Mapping) else {}


def describe(given: Settings) -> str:
    """The tool and its format; "" if nobody is named."""
    method, kind = _method(given), _format(given)
    return f"{method} ({kind})" if kind else method


def is_packed(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a checkpoint holds other numbers than floating-point ones."""
    return any(tensor.dtype not in PLAIN for tensor in stored.values())


def is_stale(given: Settings, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether the settings are of weights that have become plain since."""
    # BitNet's plain weights are rounded as they are used.
    return bool(given) and not is_packed(stored) and _method(given) != "bitnet"


def read_fp8(stored: Mapping[str, StoredTensor], config: Mapping[str, Any], given: Settings) -> Fp8:
    """The FP8 weights to decode; raises OrpoError, in a sentence, for what is not read."""
    method = _method(given)
    if method and is_packed(stored) and not _is_read(given):
        raise OrpoError(f"its weights are packed by {describe(given)}, not read here. {ORIGINAL}")
    if "quantization" in config or method not in SCALED or _keeps_packed(config):
        return Fp8([], set())
    return find_fp8(stored, {**config, "quantization_config": given})


def _method(given: Settings) -> str:
    if any(given.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"
    return str(given.get("quant_method") or "")


def _format(given: Settings) -> str:
    settings = given.get("quantization", given)
    kind = given.get("format") or settings.get("quant_algo") or given.get("bnb_4bit_quant_type")
    return str(kind or "")


def _is_read(given: Settings) -> bool:
    method = _method(given)
    if method not in READ:
        return False
    groups = [g.get("weights") or {} for g in (given.get("config_groups") or {}).values()]
    # mlx-lm takes 4 bits around 8 for granted.
    usual = all(g.get("num_bits", 4) == 4 and g.get("symmetric", True) for g in groups)
    return _format(given) in (READ[method] or (_format(given),)) and usual


def _keeps_packed(config: Mapping[str, Any]) -> bool:
    try:
        model_class, _ = get_classes(dict(config))
    except ValueError:
        return False
    return model_class.__module__.rpartition(".")[2] in KEEP_PACKED
