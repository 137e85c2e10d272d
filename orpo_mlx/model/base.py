"""Load a base model and its tokenizer from a folder or the Hub, as mlx-lm does, checked first."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import mlx_writes, replacing, user_path
from orpo_mlx.hub_errors import fetch_snapshot
from orpo_mlx.model.dequantize import plain_weight
from orpo_mlx.model.mlx_lm_api import (
    DEFAULT_ALLOW_PATTERNS,
    MultiLinear,
    QuantizedMultiLinear,
    QuantizedSwitchLinear,
    SwitchLinear,
    constructed,
    load_config,
    save_config,
    save_model,
)
from orpo_mlx.model.rope import rope_notices, rope_settings
from orpo_mlx.model.safetensors import check_model_folder
from orpo_mlx.model.stored.folder_loader import head_settings, load_planned, plan_loading
from orpo_mlx.model.tokenizer import OWN_CODE, load_chat_tokenizer, save_tokenizer

LARGE_FACTOR = 1e4  # of an adapter; those of usual runs stay below 10
HALVES = {"float16", "bfloat16"}
PLAIN: dict[type, Any] = {
    nn.QuantizedLinear: nn.Linear,
    nn.QuantizedEmbedding: nn.Embedding,
    QuantizedSwitchLinear: SwitchLinear,
    QuantizedMultiLinear: MultiLinear,
}


class Base(NamedTuple):
    """A loaded base. `notices` are sentences for the user; `config` is its config.json."""

    model: nn.Module
    tokenizer: Any  # mlx_lm's TokenizerWrapper
    config: dict[str, Any]
    folder: Path
    bits: dict[str, int]  # of every quantized module as stored, by path
    dtypes: dict[str, mx.Dtype]  # of every parameter as stored
    dequantized: bool  # for the CPU
    notices: list[str]


def find_model(
    model: str, *, revision: str | None = None, weights: bool = True, flag: str = "--model"
) -> Path:
    """The folder of a base, fetched from the Hub if it is an id; raises OrpoError if incomplete.

    `flag` is where the user named it.
    """
    folder = user_path(model)
    if not folder.exists():
        wanted = [p for p in DEFAULT_ALLOW_PATTERNS if weights or "safetensors" not in p]
        folder = fetch_snapshot(model, revision, wanted, f"{flag} {model}")
    if not (folder / "config.json").is_file():
        raise OrpoError(f"{flag} {model}: no config.json in {folder}: not a model folder.")
    if weights and not has_weights(folder):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".gguf", ".pt"))
        suffix = f" (found {', '.join(others[:3])})" if others else ""
        raise OrpoError(f"{flag} {model}: no weights: no model*.safetensors in {folder}{suffix}.")
    check_model_folder(folder, f"{flag} {model}")
    return folder


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds files of weights, not its config alone."""
    return any(folder.glob("model*.safetensors"))


def load_base(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    keep_quantized: bool = True,
    eos_token: str | None = None,
    chat_template: str | None = None,
    adapter: Path | None = None,
) -> Base:
    """Load model and tokenizer; with `keep_quantized` false, everything becomes float32.

    `chat_template` is Jinja text; the tokenizer is that of `adapter` if it has one.
    Raises OrpoError if the folder is incomplete, damaged, or of a kind that mlx-lm does not know.
    """
    folder = find_model(model, revision=revision)
    loaded, config, notices = load_weights(folder, model, trust_remote_code=trust_remote_code)
    bits = {path: m.bits for path, m in loaded.named_modules() if "scales" in m}
    dtypes = {name: v.dtype for name, v in tree_flatten(loaded.parameters())}
    if towers := other_towers(config):
        notices.append(
            f"This checkpoint also has {' and '.join(towers)}: only its text part is computed and "
            "trained. orpo-mlx fuse leaves the rest as it is."
        )
    if not keep_quantized:
        _to_float32(loaded)
        usual, _ = Counter(dtypes.values()).most_common(1)[0]
        if bits or usual != mx.float32:
            kind = "quantized" if bits else str(usual).removeprefix("mlx.core.")
            notices.append(f"CPU backend: the {kind} base is computed in float32.")
    tokenizer = load_chat_tokenizer(
        folder,
        config,
        adapter=adapter,
        eos_token=eos_token,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    dequantized = bool(bits) and not keep_quantized
    return Base(loaded, tokenizer, config, folder, bits, dtypes, dequantized, notices)


def vocabulary_rows(model: nn.Module) -> int:
    """How many token ids a model knows: the rows of its embedding or its head, the fewer ones."""
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    # The longest one: other embeddings are positions.
    rows = [m.weight.shape[0] for _, m in model.named_modules() if isinstance(m, kinds)]
    width: int = model(mx.array([[0]])).shape[-1]  # known without computing
    return min(max(rows, default=width), width)


def why_not_finite(model: nn.Module) -> str:
    """Why a model gives NaN or infinite numbers, for one that does: reads all its weights."""
    return cause_of_not_finite(model) or (
        "its weights are finite: look at the numbers in its config.json (rope, scales, epsilons)"
    )


def cause_of_not_finite(model: nn.Module) -> str:
    """`why_not_finite` where the weights or their data type show it; else ""."""
    values = [
        (n, v) for n, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating)
    ]
    for name, value in values:
        if not mx.isfinite(value).all().item():
            stored = name.replace(".linear.", ".")  # below an adapter
            return (
                f"its weight {stored} holds values that are NaN or infinite. Take another copy of "
                "the base, or convert it again"
            )
    halves = sorted({str(v.dtype).removeprefix("mlx.core.") for _, v in values} & HALVES)
    if halves:
        return (
            f"its weights are finite, but {halves[0]} does not hold what it computes. Leave out "
            "--keep-quantized, or convert the original with --dtype bfloat16 or float32"
        )
    factors = [mx.abs(v).max() for n, v in values if n.endswith((".lora_a", ".lora_b"))]
    if factors and (largest := mx.stack(factors).max()) > LARGE_FACTOR:
        return (
            f"its weights are finite, but those of the adapter reach {float(largest):.1e}. Take an "
            "earlier checkpoint, or train it again with a lower --learning-rate"
        )
    return ""


def other_towers(config: dict[str, Any]) -> list[str]:
    """What a multimodal checkpoint holds besides its text part: vision, audio."""
    if "text_config" not in config:
        return []
    return [n for n in ("vision", "audio") if isinstance(config.get(f"{n}_config"), dict)]


def load_tokenizer_alone(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    eos_token: str | None = None,
    chat_template: str | None = None,
) -> Base:
    """A base without its weights, which are neither fetched nor read: its model is empty."""
    folder = find_model(model, revision=revision, weights=False)
    config = load_settings(folder)
    tokenizer = load_chat_tokenizer(
        folder,
        config,
        eos_token=eos_token,
        chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    return Base(nn.Module(), tokenizer, config, folder, {}, {}, False, [])


def load_settings(folder: Path) -> dict[str, Any]:
    """A model folder's config.json with its end tokens; raises OrpoError if it is damaged."""
    try:
        config: dict[str, Any] = load_config(folder)
    except ValueError as error:
        raise OrpoError(f"{folder / 'config.json'} is damaged ({error}).") from None
    return config


def model_settings(folder: Path) -> dict[str, Any]:
    """The config as `load_weights` uses it: with rope and ties where mlx-lm looks for them.

    Raises OrpoError if it is damaged, or mlx-lm does not know the model.
    """
    config = load_settings(folder)
    try:
        return config | head_settings(folder, config, rope_settings(config))
    except OrpoError:
        raise
    except (Exception, SystemExit) as error:  # mlx-lm's olmo exits where a package is missing
        kind = config.get("model_type")
        why = f"mlx-lm cannot build a model of type {kind!r}: {_reason(error)}"
        raise OrpoError(f"{folder}: {why}") from None


def base_fingerprint(base: Base) -> list[Any]:
    """What distinguishes a base as it is computed: its files, and how they were loaded."""
    files = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in sorted(base.folder.glob("*.safetensors"))
    ]
    computed = sorted({str(v.dtype) for _, v in tree_flatten(base.model.parameters())})
    return [str(base.folder), base.config, files, computed, str(mx.default_device())]


def load_weights(
    folder: Path,
    name: str,
    *,
    trust_remote_code: bool = False,
    lazy: bool = False,
    flag: str = "--model",
) -> tuple[nn.Module, dict[str, Any], list[str]]:
    """The model as it is stored, its config, and sentences for the user.

    `name` is what the user calls it, `flag` where; with `lazy` no tensor is read until it is
    needed. Raises OrpoError if it cannot be loaded.
    """
    try:
        stored = load_config(folder)
        settings = rope_settings(stored)
        loading = plan_loading(folder, stored, settings)
        model, config = load_planned(
            loading, stored, lazy=lazy, trust_remote_code=trust_remote_code
        )
    except OrpoError as error:
        raise OrpoError(f"{flag} {name} cannot be loaded: {error}") from error
    except (Exception, SystemExit) as error:  # mlx-lm's olmo exits where a package is missing
        raise OrpoError(f"{flag} {name} cannot be loaded: {_reason(error)}") from error
    constructed(model)
    return model, config, [*loading.notices, *rope_notices(settings)]


def save_model_folder(base: Base, target: Path) -> None:
    """Write the model in the data types it was stored in, its config and tokenizer.

    The result is a folder that mlx-lm loads.
    """
    config = {k: v for k, v in base.config.items() if not k.startswith("quantization")}
    computed = base.model.parameters()
    stored = [(n, v.astype(base.dtypes.get(n, v.dtype))) for n, v in tree_flatten(computed)]
    base.model.update(tree_unflatten(stored))
    try:
        with replacing(target) as folder:
            folder.mkdir()
            with mlx_writes(folder):
                save_model(folder, base.model)
            save_config(config, folder / "config.json")
            save_tokenizer(base.tokenizer, folder)
            for code in base.folder.glob("*.py"):
                shutil.copyfile(code, folder / code.name)
    finally:
        base.model.update(computed)


def model_bytes(base: Base) -> int:
    """The size of the tensors that `save_model_folder` writes."""
    stored = ((v, base.dtypes.get(n, v.dtype)) for n, v in tree_flatten(base.model.parameters()))
    return sum(value.size * dtype.size for value, dtype in stored)


def _to_float32(model: nn.Module) -> None:
    """Dequantize and cast, exactly."""
    model.set_dtype(mx.float32)
    plain = [(path, new) for path, m in model.named_modules() if (new := _plain(m)) is not None]
    if plain:
        model.update_modules(tree_unflatten(plain))
    mx.eval(model.parameters())


def _plain(module: nn.Module) -> nn.Module | None:
    """The same layer with float32 weights; None if it is not quantized, or not like the others."""
    kind = PLAIN.get(type(module))
    # mx.dequantize takes one global scale (nvfp4), not one per expert: left to mlx-lm's kernel.
    if kind is None or module.get("global_scale") is not None:
        return None
    weight = plain_weight(module)
    bias = {"bias": "bias" in module} if kind in (nn.Linear, SwitchLinear) else {}
    new = kind(*weight.shape[::-1], **bias)
    new.weight = weight
    if "bias" in module:
        new.bias = module.bias
    return new


def _reason(error: BaseException) -> str:
    """The first two lines of an error as one, or what kind of error it is."""
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    if "trust_remote_code" in str(error):
        return OWN_CODE
    lines = str(error).strip().split("\n")[:2]
    return " ".join(" ".join(lines).split()).rstrip(",") or type(error).__name__
