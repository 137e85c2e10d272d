"""Every name of mlx-lm, and every unstable one of mlx, that orpo-mlx depends on, each with its use.

The rule: mlx_lm is imported here and nowhere else in the package. Of mlx, public names are imported
where they are used; what begins with `_`, reads a foreign `__dict__` or replaces a foreign
attribute is here. tests/test_upstream.py checks what is used of each name, tests/test_seams.py
that every other module keeps this rule.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# The doctor reads a trained adapter as any user of mlx-lm does.
from mlx_lm import load as load_by_mlx_lm

# convert --recipe: which layers get more bits.
from mlx_lm.convert import mixed_quant_predicate_builder

# Answers of sample, many at once; answers of generate, demo and the card.
from mlx_lm.generate import BatchGenerator, stream_generate

# The mask of a tree's calls; another convention of offset or window shows other tokens.
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import (
    ArraysCache,  # the tree gives recurrent layers a subclass of it
    CacheList,  # the same for layers with several entries
    ChunkedKVCache,  # replaced by the tree's own keys and values, as the next two are
    KVCache,
    RotatingKVCache,  # its max_size is the window that the tree's mask keeps
    make_prompt_cache,  # which cache each layer wants
)

# What gradient checkpointing copies and puts back; a cache of another base would be missed.
from mlx_lm.models.cache import _BaseCache as BaseCache

# The gated delta rule token by token, to which the doctor compares the forms of it.
from mlx_lm.models.gated_delta import gated_delta_ops

# Attention's absorbed up-projection: dequantized for the CPU, computed and not stored on the Hub.
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear

# All experts of a mixture in one weight: a target of LoRA, split and stacked for other tools.
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

# generate --temperature.
from mlx_lm.sample_utils import make_sampler

# Generation by it ends at every end token; by Hugging Face's alone only at the tokenizer's own.
from mlx_lm.tokenizer_utils import TokenizerWrapper

# The kinds of adapted layers, from which fuse knows the rule: W + scale * (a b), and DoRA's norms.
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

# Puts adapters on a model, in training and when a folder is read.
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import (
    DEFAULT_ALLOW_PATTERNS,  # the files of a base that are fetched from the Hub
    get_total_parameters,  # bits per weight of a converted folder
    load_config,  # config.json with the end tokens of generation_config.json
    load_model,  # every base; its classes are ours to wrap, its config ours to complete
    load_tokenizer,  # every tokenizer, with its end tokens and its thinking switch
    quantize_model,  # convert, the doctor's tiny bases
    save_config,  # every config.json that is written; it drops a vision config unless asked not to
    save_model,  # a trained folder of --fine-tune-type full, the doctor's and benchmark's bases
)

# Model and arguments of a config, without weights: skeletons for names, fields for rope settings.
from mlx_lm.utils import _get_classes as get_classes

__all__ = [
    "DEFAULT_ALLOW_PATTERNS",
    "ArraysCache",
    "BaseCache",
    "BatchGenerator",
    "CacheList",
    "ChunkedKVCache",
    "DoRAEmbedding",
    "DoRALinear",
    "KVCache",
    "LoRAEmbedding",
    "LoRALinear",
    "LoRASwitchLinear",
    "MultiLinear",
    "QuantizedMultiLinear",
    "QuantizedSwitchLinear",
    "RotatingKVCache",
    "SwitchLinear",
    "TokenizerWrapper",
    "attention_replaced",
    "attributes",
    "calls_replaced",
    "classes_replaced",
    "constructed",
    "create_causal_mask",
    "frozen_names",
    "functions_of",
    "functions_replaced",
    "gated_delta_loop",
    "get_classes",
    "get_total_parameters",
    "linear_to_lora_layers",
    "load_by_mlx_lm",
    "load_config",
    "load_model",
    "load_tokenizer",
    "make_prompt_cache",
    "make_sampler",
    "mixed_quant_predicate_builder",
    "quantize_model",
    "save_config",
    "save_model",
    "shallow_copy",
    "stream_generate",
    "text_arguments",
    "unwrap_tokenizer",
    "with_end_tokens",
]

Function = Callable[..., Any]
TEXT_ARGUMENTS = ("TextArgs", "TextModelArgs", "TextConfig")


def gated_delta_loop(
    q: mx.array, k: mx.array, v: mx.array, log_g: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """mlx-lm's own loop over tokens; shapes as in recurrent/gated_delta.py."""
    outputs: tuple[mx.array, mx.array] = gated_delta_ops(q, k, v, mx.exp(log_g), beta, state)
    return outputs


def with_end_tokens(tokenizer: Any, end_ids: Iterable[int]) -> Any:
    """Hugging Face's tokenizer as generation wants it, which ends at any of these ids."""
    if isinstance(tokenizer, TokenizerWrapper):
        return tokenizer
    return TokenizerWrapper(tokenizer, eos_token_ids=list(end_ids))


def unwrap_tokenizer(tokenizer: Any) -> tuple[Any, str]:
    """Hugging Face's tokenizer inside mlx-lm's, and what its template calls the thinking switch.

    It can be sent to other processes, which then load no mlx. mlx-lm's own renderers stay wrapped.
    """
    if tokenizer._chat_template is not None:
        return tokenizer, "enable_thinking"
    return tokenizer._tokenizer, tokenizer._thinking_kwarg


def text_arguments(wrapper: type) -> Any:
    """The class that a multimodal model's arguments have of their own for its text part, or None.

    llama4's is not that of llama4_text, which is another model.
    """
    module = sys.modules[wrapper.__module__]
    return next((c for n in TEXT_ARGUMENTS if (c := getattr(module, n, None)) is not None), None)


def constructed(model: nn.Module) -> nn.Module:
    """The model, which can now be frozen: mlx-lm's recurrent_gemma does not construct its base."""
    if "_no_grad" not in vars(model):
        nn.Module.__init__(model)
    return model


def frozen_names(module: nn.Module) -> set[str]:
    """The arrays of a module that are not trained; without it a trained head loses gradients."""
    return module._no_grad


def shallow_copy(module: nn.Module) -> Any:
    """A module with the same arrays and children, in which a child can be replaced.

    For the head without its backbone. Depends on mlx's modules being dicts.
    """
    kind: Any = type(module)
    copy = kind.__new__(kind)
    dict.update(copy, module)
    copy.__dict__.update(module.__dict__)
    return copy


def attributes(cache: Any) -> dict[str, Any]:
    """The live attributes of a cache: gradient checkpointing carries them in and out of a layer."""
    return cache.__dict__


@contextmanager
def calls_replaced(kinds: Iterable[type], wrap: Callable[[Function], Function]) -> Iterator[None]:
    """Layers call `wrap(call)` meanwhile: checkpointing, keyed dropout, the trunk cache.

    Python looks `__call__` up on the class, so that of the layers' classes is replaced.
    """
    foreign: list[Any] = list(kinds)
    kept = {kind: kind.__dict__.get("__call__") for kind in foreign}
    # All looked up before any is replaced: a class may inherit its call from another of them.
    calls = {kind: kind.__call__ for kind in foreign}
    for kind in foreign:
        kind.__call__ = wrap(calls[kind])
    try:
        yield
    finally:
        for kind, call in kept.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call


def functions_of(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """The methods of a model's classes, `file.Class.name`, and what their files have, `file.name`:

    each with its owner and name, for `functions_replaced`.
    """
    functions: dict[str, tuple[Any, str]] = {}
    for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
        path = kind.__module__.rpartition(".")[2]
        for owner, prefix in ((_file_of(kind), path), (kind, f"{path}.{kind.__name__}")):
            functions |= {f"{prefix}.{name}": (owner, name) for name in vars(owner)}
    return functions


class _OwnCode:
    """The file of a base's own code, which mlx-lm runs without listing it in sys.modules."""


def _file_of(kind: type) -> Any:
    if kind.__module__ in sys.modules:
        return sys.modules[kind.__module__]
    names = (getattr(value, "__globals__", None) for value in vars(kind).values())
    file = _OwnCode()
    file.__dict__ = next((space for space in names if space is not None), {})
    return file


@contextmanager
def functions_replaced(
    functions: Sequence[tuple[Any, str, Callable[[Function], Function]]],
) -> Iterator[None]:
    """Functions of classes and files, (owner, name, wrap), are `wrap(function)` meanwhile.

    For the recurrences of models: each file has the name from another, and looks it up in itself.
    """
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in functions]
    for owner, name, wrap in functions:
        setattr(owner, name, wrap(vars(owner)[name]))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


@contextmanager
def classes_replaced(
    modules: Iterable[nn.Module], replace: Callable[[type], type]
) -> Iterator[None]:
    """Modules are of the class `replace(class)` meanwhile, which derives from their own.

    For adapters whose use by a model's code is watched (layer_hooks.py).
    """
    kept = [(module, type(module)) for module in modules]
    for module, kind in kept:
        module.__class__ = replace(kind)
    try:
        yield
    finally:
        for module, kind in kept:
            module.__class__ = kind


@contextmanager
def attention_replaced(wrap: Callable[[Function], Function]) -> Iterator[None]:
    """mlx-lm's models call `wrap(attention)` meanwhile, for a cheaper softmax on the CPU.

    A model that took the name from mlx.core.fast beforehand would keep MLX's, and be slow.
    """
    attention = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = wrap(attention)
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = attention
