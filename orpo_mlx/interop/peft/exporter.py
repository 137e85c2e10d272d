"""`export --to peft`: an adapter in PEFT's layout, for transformers, vLLM and other readers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.errors import OrpoError, collected
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import check_apart, check_new_folder, replacing
from orpo_mlx.interop.checkpoint.module_map import ModuleMap, PeftModule, map_modules
from orpo_mlx.interop.checkpoint.origins import build_skeleton
from orpo_mlx.interop.checkpoint.sidecar import remove_paths, vocabulary_notices
from orpo_mlx.interop.peft.tensors import PREFIX, Factors, Part, flat_experts
from orpo_mlx.interop.peft.vllm import vllm_notes
from orpo_mlx.model.adapters import (
    Adapter,
    find_base,
    foreign_heading,
    put_onto,
    read_adapter,
    save_tensors,
)
from orpo_mlx.model.base import has_weights, model_settings, vocabulary_rows
from orpo_mlx.model.lora import alpha_for
from orpo_mlx.model.safetensors import StoredTensor, read_tensors
from orpo_mlx.run_folder.lock import check_free
from orpo_mlx.tokenizer_files import copy_tokenizer, own_tokenizer

PEFT_WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEAD = "lm_head"  # what transformers calls the head that shares the embedding's weights
# transformers + PEFT give mlx-lm's logits: tests/parity/test_peft_families.py.
PROVEN = (
    "llama", "mistral", "mistral3", "ministral3", "qwen2", "qwen3", "qwen3_5", "gemma2",
    "gemma3_text", "gemma3", "phi3", "olmo2", "olmo3", "granite", "smollm3", "cohere2", "glm4",
    "starcoder2", "lfm2", "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "granitemoe", "glm4_moe",
    "gpt_oss", "deepseek_v3", "qwen3_next",
)  # fmt: skip


class Exported(NamedTuple):
    """What was written."""

    output: Path
    base: str
    kind: str  # lora or dora
    rank: int
    alpha: float
    modules: int
    tensors: int


def export_peft(config: ExportConfig, report: Callback = lambda event: None) -> Exported:
    """Write an adapter as PEFT's files, with its tokenizer.

    Raises OrpoError, with every module, for what PEFT does not support.
    """
    check_free(config.output)
    check_new_folder(config.output, report, overwrite=config.overwrite)
    adapter = read_adapter(config.adapter)
    base, revision, folder = find_base(adapter, config.model, config.revision, weights=False)
    settings = model_settings(folder)
    module_map = map_modules(settings, tensors_if_any(folder))
    if not module_map.block_paths.keys() >= set(adapter.modules):
        # Only the files show whether the head has weights of its own.
        _, _, folder = find_base(adapter, config.model, config.revision)
        settings = model_settings(folder)
        module_map = map_modules(settings, tensors_if_any(folder))
    check_apart(config.output, "adapter", config.adapter)
    check_apart(config.output, "base", folder)
    tensors, layout = peft_layout(adapter, module_map)
    skeleton = build_skeleton(settings)
    for text in vocabulary_notices(adapter.folder, vocabulary_rows(skeleton)):
        report(Notice(text, warning=True))
    put_onto(skeleton, adapter)  # as fuse and mlx-lm do, which go by its config
    named = config.base_id or (str(Path(base).resolve()) if Path(base).exists() else base)
    layout |= {"base_model_name_or_path": named, "revision": None if config.base_id else revision}
    _report_caveats(settings, config.base_id, named, report)
    for text in vllm_notes(layout):
        report(Notice(text))
    with replacing(config.output) as made:
        made.mkdir()
        save_tensors(made / PEFT_WEIGHTS, tensors, layout="pt")
        text = json.dumps(layout, indent=2, sort_keys=True) + "\n"
        (made / CONFIG).write_text(text, encoding="utf-8")
        copy_tokenizer(own_tokenizer(config.adapter) or folder, made)
        remove_paths(made)
    return Exported(
        config.output,
        named,
        adapter.kind,
        adapter.rank,
        layout["lora_alpha"],
        len(adapter.modules),
        len(tensors),
    )


def tensors_if_any(folder: Path) -> dict[str, StoredTensor] | None:
    """The tensors of a model folder by their names; None if it has only the config."""
    return read_tensors(folder) if has_weights(folder) else None


def peft_layout(
    adapter: Adapter, module_map: ModuleMap
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """PEFT's tensors and adapter_config.json; raises OrpoError for what they cannot express."""
    if adapter.kind == "full":
        raise OrpoError(
            f"Adapter {adapter.folder}: it has trained weights, not an adapter. Fuse it instead: "
            f"orpo-mlx fuse --adapter {adapter.folder} --output FOLDER"
        )
    modules = {path: _factors(adapter, path) for path in adapter.modules}
    if problems := _problems(adapter, modules, module_map):
        raise collected(f"Adapter {adapter.folder} cannot be exported:", problems)
    tensors: dict[str, mx.array] = {}
    experts: dict[str, dict[str, list[Part]]] = {}
    targets, parameters = [], []
    for path, factors in modules.items():
        peft_module = module_map.modules[path]
        if peft_module.experts:
            of_block = experts.setdefault(peft_module.path, {})
            of_block.setdefault(peft_module.parameter, []).append(Part(peft_module.rows, factors))
            continue
        tensors |= _plain_tensors(peft_module, factors)
        if peft_module.parameter:
            parameters.append(f"{peft_module.path}.{peft_module.parameter}")
        else:
            targets.append(peft_module.path)
        if path == module_map.tied:
            tensors |= _head_tensors(factors)
    ranks: dict[str, int] = {}
    for path, parts in experts.items():
        tensors |= _expert_tensors(path, parts, ranks)
    parameters += [f"{path}.{name}" for path, parts in experts.items() for name in parts]
    unequal = {name: rank for name, rank in ranks.items() if rank != adapter.rank}
    return tensors, _settings(adapter, module_map, targets, parameters, unequal)


def _settings(
    adapter: Adapter,
    module_map: ModuleMap,
    targets: list[str],
    parameters: list[str],
    ranks: Mapping[str, int],
) -> dict[str, Any]:
    """adapter_config.json as PEFT 0.21 reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": alpha_for(adapter.scale, adapter.rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": adapter.kind == "dora",
        "use_rslora": False,
        "modules_to_save": None,
        "target_modules": sorted(targets),
        "target_parameters": sorted(parameters) or None,
        "rank_pattern": dict(sorted(ranks.items())),
        "alpha_pattern": {n: alpha_for(adapter.scale, r) for n, r in sorted(ranks.items())},
        "ensure_weight_tying": module_map.tied in adapter.modules,
    }


def _factors(adapter: Adapter, path: str) -> Factors:
    weights = adapter.weights
    return Factors(weights[f"{path}.lora_a"], weights[f"{path}.lora_b"], weights.get(f"{path}.m"))


def _problems(adapter: Adapter, modules: Mapping[str, Factors], module_map: ModuleMap) -> list[str]:
    """Modules that PEFT does not support, that do not fit the model, or that are missing."""
    problems = []
    for path, factors in modules.items():
        peft_module = module_map.modules.get(path)
        if peft_module is None:
            why = module_map.refused.get(
                path, f"{foreign_heading(adapter)}, which has no such module"
            )
        else:
            why = _misfit(peft_module, factors)
        if why:
            problems.append(f"{path}: {why}")
    last = module_map.blocks - adapter.num_layers if adapter.num_layers >= 0 else 0
    for path, (block, name) in module_map.block_paths.items():
        adaptable = path in module_map.modules or path in module_map.refused
        wanted = adaptable and (adapter.keys is None or name in adapter.keys)
        if block >= last and wanted and path not in modules:
            problems.append(f"{path}: the adapter has no tensors for it")
    return problems


def _misfit(peft_module: PeftModule, factors: Factors) -> str:
    """Why an adapter does not fit a module; "" if it does."""
    a, b = factors.a.shape, factors.b.shape
    if peft_module.embedding:
        shape: tuple[int, ...] = (a[0], b[-1])
    elif peft_module.experts:
        shape = (a[0], b[1], a[2]) if len(a) == 3 else ()
    else:
        shape = (b[-1], a[0])
    if shape != peft_module.shape:
        return f"it was made for a weight of shape {shape}, the model's is {peft_module.shape}"
    if factors.m is not None and (peft_module.embedding or peft_module.parameter):
        what = "an embedding" if peft_module.embedding else "experts, or modules next to them"
        return f"PEFT has no DoRA for {what}: train these with --fine-tune-type lora"
    return ""


def _plain_tensors(peft_module: PeftModule, factors: Factors) -> dict[str, mx.array]:
    """Of a layer: lora_A (r, in), lora_B (out, r). Of an embedding: (r, V), (D, r)."""
    path = PREFIX + peft_module.path
    if peft_module.embedding:
        return {
            f"{path}.lora_embedding_A": factors.a.T,
            f"{path}.lora_embedding_B": factors.b.T,
        }
    made = {f"{path}.lora_A.weight": factors.a.T, f"{path}.lora_B.weight": factors.b.T}
    if factors.m is not None:
        made[f"{path}.lora_magnitude_vector"] = factors.m
    return made


def _head_tensors(factors: Factors) -> dict[str, mx.array]:
    """The embedding's adapter as the head's, which multiplies by the same weights."""
    path = PREFIX + HEAD
    return {f"{path}.lora_A.weight": factors.b, f"{path}.lora_B.weight": factors.a}


def _expert_tensors(
    path: str, parts: Mapping[str, list[Part]], ranks: dict[str, int]
) -> dict[str, mx.array]:
    """Experts of one mixture; gate_up is wrapped first, so it is inside. Adds to `ranks`."""
    made: dict[str, mx.array] = {}
    for parameter, group in parts.items():
        inner = len(parts) == 2 and parameter == "gate_up_proj"
        prefix = f"{PREFIX}{path}{'.base_layer' if inner else ''}"
        group.sort(key=lambda part: part.rows or (0, 0, 0))
        a, b = flat_experts(group)
        made |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        ranks[f"{path}.{parameter}"] = sum(part.factors.a.shape[1] for part in group)
    return made


def _report_caveats(
    settings: Mapping[str, Any], base_id: str | None, base: str, report: Callback
) -> None:
    """What a reader of the export should know."""
    if settings.get("model_type") not in PROVEN:
        report(
            Notice(
                f"Adapters of {settings.get('model_type')} were never compared with PEFT (docs/"
                "interop.md): check that load_adapter(...).unexpected_keys is empty, and compare "
                "an answer.",
                warning=True,
            )
        )
    if "quantization" in settings and not base_id:
        report(
            Notice(
                f"transformers cannot load {base}, which is quantized for MLX: give the id of its "
                "original with --base-id, or load that and put the adapter on it.",
                warning=True,
            )
        )
