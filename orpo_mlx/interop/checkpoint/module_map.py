"""Which module of transformers 5 and PEFT each module of an mlx-lm model is.

From the name in a checkpoint (origins.py) to transformers' module, by the rules of its own loading
(transformers/conversion_mapping.py), and how PEFT names it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.nn as nn

from orpo_mlx.interop.checkpoint.origins import Origin, build_skeleton, trace_parameters
from orpo_mlx.model.lora import EMBEDDING, find_routers, is_adaptable
from orpo_mlx.model.mlx_lm_api import SwitchLinear
from orpo_mlx.model.safetensors import StoredTensor

MIXTRAL = ((r"\.block_sparse_moe\.", ".mlp."),)
GRANITE = (
    (r"\.input_linear\.weight$", ".experts.gate_up_proj"),
    (r"\.output_linear\.weight$", ".experts.down_proj"),
    (r"\.router\.layer\.weight$", ".router.weight"),
)
RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "mixtral": MIXTRAL,
    "minimax": MIXTRAL,
    "minimax_m2": MIXTRAL,
    "phimoe": (*MIXTRAL, (r"\.gate\.weight$", ".router.weight")),
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE,
    "granitemoehybrid": GRANITE,
}
ONE_EXPERT = re.compile(r"(.+\.experts)\.\d+\.(\w+)\.weight")
HALVES = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1}
# PEFT 0.21 takes these names, anywhere in a mixture of experts, for the experts' own
# (peft/utils/transformers_weight_conversion.py), unless target_parameters names them in full.
CAPTURED = ("gate_proj", "up_proj", "down_proj", "gate", "w1", "w2", "w3")

# PEFT 0.21 refuses their out_proj (peft/tuners/tuners_utils.py).
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")


class PeftModule(NamedTuple):
    """The module of transformers that one of ours is, or is a part of."""

    path: str
    parameter: str  # what target_parameters names; "": target_modules has the path
    rows: tuple[int, int, int] | None  # of a fused parameter: start, stop, step
    experts: int  # 0: no experts
    embedding: bool
    shape: tuple[int, ...]  # of our weight: (out, in), an embedding's (V, D), experts' (E, out, in)


class ModuleMap(NamedTuple):
    """The modules of transformers by the MLX paths of a model's modules."""

    modules: dict[str, PeftModule]
    refused: dict[str, str]  # why a module has none
    tied: str  # the embedding whose weights are the head's too; "" if there is none
    blocks: int
    block_paths: dict[str, tuple[int, str]]  # of a module in a block: the block, the name there


def map_modules(config: Mapping[str, Any], stored: Mapping[str, StoredTensor] | None) -> ModuleMap:
    """All modules that can have an adapter; raises OrpoError as `trace_parameters`."""
    model = build_skeleton(config)
    origins, computed = trace_parameters(config, stored)
    held = {*origins, *computed}
    model_type = str(config.get("model_type"))
    prefix = text_prefix(model_type)
    modules = dict(model.named_modules())
    inside = _in_blocks(model, modules)
    routers = [set(find_routers(block)) for block in model.layers]
    mixture = any(isinstance(m, SwitchLinear) for m in modules.values())
    mapped, refused = {}, {}
    for path, module in modules.items():
        if not is_adaptable(module) or f"{path}.weight" not in held:
            continue
        origin = origins.get(f"{path}.weight")
        peft_module = _peft_module(module, origin, model_type, prefix) if origin else None
        if peft_module is None:
            refused[path] = _refusal(origin)
            continue
        if model_type in MAMBA and peft_module.path.endswith(".out_proj"):
            refused[path] = "PEFT does not adapt the out_proj of a Mamba layer"
            continue
        block, name = inside.get(path, (0, ""))
        if not peft_module.experts and (
            name in routers[block] or (mixture and _is_captured(peft_module.path))
        ):
            peft_module = peft_module._replace(parameter="weight")
        mapped[path] = peft_module
    outside = {p: m for p, m in modules.items() if p in mapped and p not in inside}
    return ModuleMap(mapped, refused, _tied(config, outside), len(model.layers), inside)


def text_prefix(model_type: str) -> str:
    """Where transformers' class for text has the blocks of a multimodal checkpoint."""
    name = causal_class(model_type) or ""
    return "model." if name.endswith("ForCausalLM") else "model.language_model."


def causal_class(model_type: str) -> str | None:
    """What transformers calls the class of such a language model; None if it has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)


def module_name(name: str, model_type: str, prefix: str) -> str:
    """The tensor of transformers' model that a checkpoint's tensor becomes, or goes into."""
    name = re.sub(r"^(language_model\.model|model\.language_model)\.", prefix, name)
    name = name.removeprefix("language_model.")
    for pattern, new in RENAMED.get(model_type, ()):
        name = re.sub(pattern, new, name)
    if one := ONE_EXPERT.fullmatch(name):
        fused = "gate_up_proj" if one[2] in HALVES else "down_proj"
        return f"{one[1]}.{fused}"
    return name.removesuffix("_blocks")  # MXFP4


def _peft_module(
    module: nn.Module, origin: Origin, model_type: str, prefix: str
) -> PeftModule | None:
    """The module of transformers that a module is; None if PEFT cannot adapt it."""
    name = module_name(origin.names[0], model_type, prefix)
    if not isinstance(module, SwitchLinear):
        plain = len(origin.names) == 1 and origin.rows is None and not origin.transposed
        if not plain or not name.endswith(".weight"):
            return None
        embedding = isinstance(module, EMBEDDING)
        return PeftModule(name.removesuffix(".weight"), "", None, 0, embedding, module.weight.shape)
    path, _, parameter = name.rpartition(".")
    if parameter not in ("gate_up_proj", "down_proj") or origin.transposed:
        return None
    rows = None
    if parameter == "gate_up_proj":
        size = module.weight.shape[1]
        half = HALVES.get(origin.names[0].split(".")[-2])
        if origin.rows is not None:
            rows = (origin.rows.start, origin.rows.stop, origin.rows.step)
        elif half is not None:
            rows = (half * size, (half + 1) * size, 1)
        else:
            return None
    return PeftModule(path, parameter, rows, module.weight.shape[0], False, module.weight.shape)


def _refusal(origin: Origin | None) -> str:
    if origin is None:
        return "mlx-lm computes it from the checkpoint's tensors: transformers has no such module"
    return f"in the checkpoint it is transposed, or part of {', '.join(origin.names[:2])}"


def _is_captured(path: str) -> bool:
    return path.rpartition(".")[2] in CAPTURED


def _in_blocks(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, str]]:
    """The block of every module inside one, and its name there."""
    paths = {id(m): p for p, m in modules.items()}
    return {
        paths[id(m)]: (number, name)
        for number, block in enumerate(model.layers)
        for name, m in block.named_modules()
        if name and id(m) in paths
    }


def _tied(config: Mapping[str, Any], outside: Mapping[str, nn.Module]) -> str:
    """The embedding whose weights are also the head's: no layer has its shape."""
    size = config.get("text_config", config).get("hidden_size")
    for path, module in outside.items():
        if isinstance(module, EMBEDDING) and size in (None, module.weight.shape[1]):
            heads = [m for m in outside.values() if isinstance(m, nn.Linear)]
            tied = all(head.weight.shape != module.weight.shape for head in heads)
            return path if tied else ""
    return ""
