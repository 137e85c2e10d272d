"""Each name of mlx and mlx-lm that we lean on: there, and called as we call it.

What of ours breaks is in the assertion. Ours is imported inside tests, so that one name that is
gone hides no other: `make upstream` runs this file on the newest versions, without conftest.py.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

API = Path(__file__).parents[1] / "orpo_mlx" / "model" / "mlx_lm_api.py"
TREE = "the prefix tree (model/tree_forward.py)"
FUSE = "orpo-mlx fuse and export (model/updates.py, interop/gguf/model.py)"
NAMES = "the names of Hugging Face's tensors (interop/checkpoint/origins.py)"
BASES = "loading of a base (model/base.py)"
CHECKPOINTED = "gradient checkpointing (model/grad_checkpoint.py)"
SOFTMAX = "the cheap softmax (training/cpu_attention.py)"
# By what model/mlx_lm_api.py calls a name of mlx_lm: what breaks without it, and how we call it:
# the names of positional arguments in order, then those of keywords.
USES: dict[str, tuple[str, ...]] = {
    "load_by_mlx_lm": ("the doctor's check of an adapter", "path_or_hf_repo", "adapter_path"),
    "mixed_quant_predicate_builder": ("convert --recipe", "recipe model group_size", ""),
    "stream_generate": ("generate, demo and cards", "model tokenizer prompt", "max_tokens"),
    "BatchGenerator": (
        "orpo-mlx sample (sampling/batches.py)",
        "model",
        "stop_tokens completion_batch_size prefill_batch_size",
    ),
    "create_causal_mask": (TREE, "N offset", "window_size"),
    "ArraysCache": (TREE, "size", ""),
    "CacheList": (TREE,),
    "ChunkedKVCache": (TREE,),
    "KVCache": (TREE,),
    "RotatingKVCache": (TREE,),
    "make_prompt_cache": (TREE, "model", ""),
    "BaseCache": (CHECKPOINTED,),
    "MultiLinear": (NAMES, "input_dims output_dims num_heads", ""),
    "QuantizedMultiLinear": ("dequantizing for the CPU (model/base.py)",),
    "QuantizedSwitchLinear": ("--target-modules on experts (model/lora.py)",),
    "SwitchLinear": (
        "--target-modules on experts (model/lora.py)",
        "input_dims output_dims num_experts",
        "bias",
    ),
    "gated_delta_ops": ("the doctor's check of gated delta", "q k v g beta state mask", ""),
    "TokenizerWrapper": ("the end of answers", "tokenizer", "eos_token_ids"),
    "make_sampler": ("generate --temperature", "", "temp"),
    "DoRAEmbedding": (FUSE,),
    "DoRALinear": (FUSE,),
    "LoRAEmbedding": (FUSE,),
    "LoRALinear": (FUSE,),
    "LoRASwitchLinear": (FUSE,),
    "linear_to_lora_layers": ("every adapter", "model num_layers config", "use_dora"),
    "DEFAULT_ALLOW_PATTERNS": ("downloads of a base (model/base.py)",),
    "get_total_parameters": ("orpo-mlx convert", "model", ""),
    "load_config": (BASES, "model_path", ""),
    "load_model": (
        BASES,
        "model_path lazy",
        "model_config get_model_classes trust_remote_code",
    ),
    "load_tokenizer": (BASES, "model_path tokenizer_config_extra", "eos_token_ids"),
    "quantize_model": (
        "orpo-mlx convert and the doctor",
        "model config group_size bits",
        "mode quant_predicate",
    ),
    "save_config": ("every config.json", "config config_path", "keep_vision_config"),
    "save_model": ("--fine-tune-type full and the doctor", "save_path model", ""),
    "get_classes": (f"rope settings (model/rope.py) and {NAMES}", "config", ""),
}


def sources() -> dict[str, tuple[str, str]]:
    """Module and name of everything that mlx_lm_api.py takes from mlx_lm, by its name there."""
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in ast.parse(API.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mlx_lm")
        for alias in node.names
    }


def named(name: str) -> Any:
    module, attribute = sources()[name]
    return getattr(importlib.import_module(module), attribute)


def fault(function: Callable[..., Any], positional: str, keywords: str) -> str:
    """Why a call with these arguments is not what it was; "" if it is."""
    parameters = inspect.signature(function).parameters
    in_order = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    given = positional.split()
    if in_order[: len(given)] != given:
        return f"takes {in_order} by position, we pass {given}"
    if gone := set(keywords.split()) - parameters.keys():
        return f"has no {sorted(gone)}"
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    unknown = needed - {*given, *keywords.split()}
    return f"asks for {sorted(unknown)}" if unknown else ""


def test_every_name_of_mlx_lm_has_a_sentence_on_what_breaks() -> None:
    assert USES.keys() == sources().keys()


@pytest.mark.parametrize("name", USES)
def test_mlx_lm_has_the_name_and_takes_what_we_pass(name: str) -> None:
    breaks, *call = USES[name]
    module, attribute = sources()[name]
    exists = hasattr(importlib.import_module(module), attribute)
    assert exists, f"{module} has no {attribute}. It breaks {breaks}."
    why = fault(named(name), *call) if call else ""
    assert not why, f"{attribute} {why}. It breaks {breaks}."


def test_a_wrapper_has_the_arguments_of_its_text_part() -> None:
    from mlx_lm.models import gemma3, llama4

    from orpo_mlx.model.mlx_lm_api import text_arguments

    assert text_arguments(llama4.ModelArgs) is llama4.TextArgs, f"It breaks {BASES}: llama4."
    assert text_arguments(gemma3.ModelArgs) is None


GATED_DELTA = "q k v a b A_log dt_bias state mask use_kernel lower_bound allow_neg_eigval"
GATED_DELTA_FILES = ("qwen3_5", "qwen3_next", "kimi_linear", "kimi_k3", "olmo_hybrid")
# What model/recurrent/forms.py replaces, and the arguments that it reads.
RECURRENCES = {
    **{f"{file}.gated_delta_update": GATED_DELTA for file in GATED_DELTA_FILES},
    "bailing_moe_v3.gated_delta_update": GATED_DELTA,
    "bailing_moe_linear.recurrent_gla": "q k v h",
    "jamba.JambaMambaMixer._process_sequence": "x conv_state ssm_state",
    "mamba.MambaBlock._process_sequence": "x conv_cache state_cache",
    "recurrent_gemma.rnn_scan": "x a h0",
    "rwkv7.Rwkv7TimeMixing._wkv7": "r w k v a b state",
}


@pytest.mark.parametrize("path", RECURRENCES)
def test_recurrences_take_what_we_read(path: str) -> None:
    file, *names = path.split(".")
    owner: Any = importlib.import_module(f"mlx_lm.models.{file}")
    for name in names:
        owner = getattr(owner, name)
    parameters, wanted = inspect.signature(owner).parameters, set(RECURRENCES[path].split())
    assert wanted <= parameters.keys(), f"{path}: its layers keep a state a token in training"
    if RECURRENCES[path] == GATED_DELTA:
        assert wanted == parameters.keys(), f"{path}: what is new goes to mlx-lm's loop"


def test_the_recurrences_are_those_that_are_replaced() -> None:
    from orpo_mlx.model.recurrent.forms import LOOPS

    others = {p: n for p, n in RECURRENCES.items() if n != GATED_DELTA}
    assert {p: " ".join(loop.sequences + loop.states) for p, loop in LOOPS.items()} == others


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (lambda a, b, *, key=0: 0, ""),
        (lambda b, a, *, key=0: 0, "by position"),
        (lambda a, b: 0, "has no ['key']"),
        (lambda a, b, c, *, key=0: 0, "asks for ['c']"),
        (lambda a, b, *, key, other: 0, "asks for ['other']"),
    ],
)
def test_a_changed_signature_is_seen(changed: Callable[..., Any], why: str) -> None:
    message = fault(changed, "a b", "key")
    assert why in message
    assert bool(why) == bool(message)


def test_an_answer_comes_in_parts_with_a_reason_for_their_end() -> None:
    from mlx_lm.generate import GenerationResponse, generate_step

    lost = {
        "text",
        "finish_reason",
        "generation_tokens",
    } - GenerationResponse.__annotations__.keys()
    assert not lost, f"GenerationResponse has no {sorted(lost)}. It breaks generate and the card."
    assert "sampler" in inspect.signature(generate_step).parameters, "generate --temperature breaks"


def test_caches_hold_what_the_tree_reads() -> None:
    arrays, window = named("ArraysCache")(2), named("RotatingKVCache")(max_size=8)
    both = named("CacheList")(named("KVCache")(), arrays)
    read = {arrays: ("cache", "left_padding", "lengths"), window: ("max_size",), both: ("caches",)}
    for entry, names in read.items():
        lost = set(names) - vars(entry).keys()
        assert not lost, f"{type(entry).__name__} has no {sorted(lost)}. It breaks {TREE}."
    for kind in ("KVCache", "ChunkedKVCache", "RotatingKVCache", "ArraysCache", "CacheList"):
        assert issubclass(named(kind), named("BaseCache")), (
            f"{kind} is not a BaseCache. It breaks {CHECKPOINTED}: its state is not carried."
        )


def test_mlx_lms_masks_come_from_the_cache() -> None:
    import mlx.core as mx
    from mlx_lm.models.base import create_attention_mask

    from orpo_mlx.model.tree_forward import PrefixKVCache

    mask = create_attention_mask(
        mx.zeros((1, 6, 2)), PrefixKVCache(), window_size=4, return_array=True
    )
    assert isinstance(mask, mx.array), f"make_mask is not asked. It breaks {TREE}."
    assert mask.shape == (6, 6)


@pytest.mark.parametrize("dora", [False, True])
def test_adapted_layers_hold_what_fuse_reads(dora: bool) -> None:
    import mlx.nn as nn

    block, model = nn.Module(), nn.Module()
    block.a, block.b, model.layers = nn.Linear(8, 8), nn.Embedding(8, 8), [block]
    if not dora:
        block.c = named("SwitchLinear")(8, 8, 2)
    config = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": None}
    named("linear_to_lora_layers")(model, 1, config, use_dora=dora)
    kinds = ("DoRALinear", "DoRAEmbedding") if dora else ("LoRALinear", "LoRAEmbedding")
    kinds += () if dora else ("LoRASwitchLinear",)
    for layer, kind in zip(block.children().values(), kinds, strict=True):
        assert type(layer) is named(kind), f"{type(layer).__name__} is new. It breaks {FUSE}."
        wanted = ("lora_a", "lora_b", "scale", "dropout", *(("m",) if dora else ()))
        lost = [name for name in wanted if not hasattr(layer, name)]
        assert not lost, f"{kind} has no {lost}. It breaks {FUSE}."
        assert not fault(layer.fuse, "", "dequantize"), f"fuse has changed. It breaks {FUSE}."
    if not dora:
        breaks = "It breaks the search for routers (model/lora.py)."
        assert named("SwitchLinear")(8, 8, 3).num_experts == 3, breaks


def test_a_tokenizer_is_wrapped_as_we_unwrap_it() -> None:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from tests import tiny

    inner = tiny.build_tokenizer()
    wrapped = TokenizerWrapper(inner)
    breaks = "It breaks unwrap_tokenizer: token ids are made by other processes without mlx."
    lost = {"_tokenizer", "_chat_template", "_thinking_kwarg"} - vars(wrapped).keys()
    assert not lost, f"TokenizerWrapper has no {sorted(lost)}. {breaks}"
    assert wrapped._tokenizer is inner, breaks
    assert wrapped.eos_token_ids == {inner.eos_token_id}, "Where an answer ends breaks."


def test_mlxs_modules_are_dicts_that_leave_out_private_arrays() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    module = nn.Linear(2, 2)
    assert isinstance(module, dict), "Module is not a dict. It breaks shallow_copy: no fast path."
    module.freeze(keys=["bias"])
    assert module._no_grad == {"bias"}, "_no_grad has changed. It breaks frozen_names."
    module._keys = [mx.zeros(1)]
    assert module.parameters().keys() == {"weight", "bias"}, (
        "Names with _ are parameters. It breaks KeyedDropout: its keys would be trained and saved."
    )


def test_models_call_the_attention_and_the_layers_that_we_replace() -> None:
    import mlx.core as mx

    from orpo_mlx.model.mlx_lm_api import attention_replaced, calls_replaced
    from tests import tiny

    model, _ = tiny.build_model("llama")
    passed: list[Any] = []

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            passed.append((len(arguments), set(keywords)))
            return call(*arguments, **keywords)

        return counted

    with attention_replaced(counting):
        mx.eval(model(mx.array([[1, 2, 3]])))
    assert len(passed) == len(model.layers), f"It breaks {SOFTMAX}."
    assert all(n == 3 and k <= {"scale", "mask", "sinks"} for n, k in passed), (
        f"Attention is called with {passed[0]}. It breaks {SOFTMAX}."
    )
    passed.clear()
    with calls_replaced({type(model.layers[0])}, counting):
        mx.eval(model(mx.array([[1, 2, 3]])))
    assert len(passed) == len(model.layers), "It breaks gradient checkpointing and dropout."
    assert hasattr(model, "args"), "Models keep no args. It breaks export --to gguf."


@pytest.mark.parametrize(
    ("family", "name", "breaks"),
    [
        ("deepseek_v3", "cast_predicate", "the router's correction would be cast by convert"),
        ("gpt_oss", "quant_predicate", "convert would quantize what mlx-lm leaves"),
        ("qwen3_next", "make_cache", TREE),
        ("llama", "layers", "everything that counts blocks"),
        ("mixtral", "sanitize", NAMES),
    ],
)
def test_models_answer_what_they_are_asked(family: str, name: str, breaks: str) -> None:
    model = importlib.import_module(f"mlx_lm.models.{family}").Model
    assert hasattr(model, name), f"{family} has no {name}: {breaks}."


def test_a_name_that_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mlx_lm.utils._get_classes")
    with pytest.raises(AssertionError, match="no _get_classes. It breaks rope settings"):
        test_mlx_lm_has_the_name_and_takes_what_we_pass("get_classes")
