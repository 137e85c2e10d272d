"""PEFT folders that are imported: what is read as PEFT means it, and what is refused by name."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from transformers import AutoTokenizer

from orpo_mlx.config.interop import ExportConfig, ImportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.interop.peft import config as peft_config
from orpo_mlx.interop.peft.exporter import export_peft
from orpo_mlx.interop.peft.importer import import_peft
from orpo_mlx.model.adapters import apply_adapter, read_adapter
from orpo_mlx.model.base import load_base
from tests.interop.peft.peft_folders import CONFIG, WEIGHTS, bring, damaged
from tests.model.test_adapters import adapted

Q_A = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "peft_type 'LOHA' (allowed: 'LORA')"),
    ({"bias": "all"}, "bias: 'all' (allowed: 'none')"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save: full weights of lm_head"),
    ({"init_lora_weights": "pissa_niter_4"}, "changes the base's own weights"),
    ({"layer_replication": [[0, 2]]}, "layer_replication: mlx-lm has no repeated layers"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices: mlx-lm has no single rows"),
    ({"r": 0}, "r: 0 (allowed: 1 to 8192)"),
    ({"r": 5}, "its tensors have rank 4, the config says 5"),
    ({"lora_alpha": float("nan")}, "lora_alpha: nan"),
    ({"alpha_pattern": {"(.|.)*m": 2}}, "take more than 0.1 s to match; the time ran out"),
    ({"rank_pattern": {"(?:(.)|(.)(.))*m": 2}}, "take more than 0.1 s to match; the time ran out"),
    ({"rank_pattern": {"(?i)Q_PROJ": 2}}, "is not a pattern (global flags"),
    ({"rank_pattern": {"(q)(_)proj\\2?": 2}}, "is not a pattern (cannot refer to an open group"),
    ({"rank_pattern": {"q" * 301: 2}}, "is longer than 300 characters"),
    ({"base_model_name_or_path": [1]}, "base_model_name_or_path: '[1]' is not a name"),
    ({"alpha_pattern": {"(": 2}}, "is not a pattern"),
    ({"rank_pattern": ["q_proj"]}, "is not a JSON object"),
    ({"target_parameters": "x"}, "target_parameters: not a list of names"),
    ({"use_dora": True}, "q_proj: no lora_magnitude_vector"),
    ({"lora_parameters": {}}, "is an adapter of mlx-lm already"),
]


@pytest.mark.parametrize(("config", "why"), CONFIGS, ids=[next(iter(c)) for c, _ in CONFIGS])
def test_settings_that_mlx_does_not_support_are_refused_by_name(
    config: dict[str, Any],
    why: str,
    llama: Path,
    peft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peft_config, "SECONDS", 0.1)
    source = damaged(peft, tmp_path / "peft", config)
    with pytest.raises(OrpoError) as error:
        bring(source, llama, tmp_path / "out")
    assert why in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_patterns_and_names_of_a_file_share_one_limit(
    peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = {"up": 8, "down": 8}
    config = {"rank_pattern": patterns, "alpha_pattern": patterns}
    source = damaged(peft, tmp_path / "peft", config)
    clock = count(step=2)  # a match takes 2 s, of 5
    monkeypatch.setattr(peft_config, "process_time", lambda: next(clock))
    settings = peft_config.read_peft_config(source, "theirs")
    assert settings.rank_of("a.q_proj") == 4
    with pytest.raises(OrpoError, match="more than 5 s to match; the time ran out at 'down' and b"):
        settings.scale_of("b.q_proj", 4)
    again = peft_config.read_peft_config(source, "theirs")
    assert again.rank_of("a.q_proj") == 4
    with pytest.raises(OrpoError, match="the time ran out at 'down' and b"):
        again.rank_of("b.q_proj")


def _without_b(tensors: dict[str, mx.array]) -> None:
    del tensors[Q_A.replace("lora_A", "lora_B")]


def _other_layer(tensors: dict[str, mx.array]) -> None:
    tensors[Q_A.replace("layers.2", "layers.7")] = tensors[Q_A]


def _stranger(tensors: dict[str, mx.array]) -> None:
    tensors["base_model.model.model.layers.2.prompt"] = tensors[Q_A]


def _narrow(tensors: dict[str, mx.array]) -> None:
    tensors[Q_A] = tensors[Q_A][:, :32]


def _flat(tensors: dict[str, mx.array]) -> None:
    tensors[Q_A] = tensors[Q_A].reshape(-1)


def _not_a_number(tensors: dict[str, mx.array]) -> None:
    tensors[Q_A] = mx.full(tensors[Q_A].shape, np.nan)


def _whole_numbers(tensors: dict[str, mx.array]) -> None:
    tensors[Q_A] = tensors[Q_A].astype(mx.int32)


def _one_expert(tensors: dict[str, mx.array]) -> None:
    tensors["base_model.model.model.layers.0.mlp.experts.3.w1.lora_A.weight"] = tensors[Q_A]


def _empty(tensors: dict[str, mx.array]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_without_b, "model.layers.2.self_attn.q_proj: no lora_B"),
        (_other_layer, "layers.7.self_attn.q_proj: the model has no such module"),
        (_stranger, "not a tensor of a LoRA adapter"),
        (_narrow, "do not fit the model's weight (64, 64)"),
        (_flat, "lora_A and lora_B are not matrices"),
        (_not_a_number, "has NaN or infinite values"),
        (_whole_numbers, "its type is I32"),
        (_one_expert, "tensors of one expert, from before transformers 5"),
        (_empty, "it has no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, mx.array]], None],
    why: str,
    llama: Path,
    peft: Path,
    tmp_path: Path,
) -> None:
    source = damaged(peft, tmp_path / "peft", tensors=change)
    with pytest.raises(OrpoError) as error:
        bring(source, llama, tmp_path / "out")
    assert why in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pickle_is_refused(llama: Path, peft: Path, tmp_path: Path) -> None:
    source = damaged(peft, tmp_path / "peft")
    (source / WEIGHTS).rename(source / "adapter_model.bin")
    with pytest.raises(OrpoError, match=r"adapter_model\.bin is never loaded: pickle can run code"):
        bring(source, llama, tmp_path / "out")


def test_other_folders_are_distinguished(llama: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(OrpoError, match="is one of mlx-lm's already: use it with --adapter"):
        bring(run, llama, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OrpoError, match="not a PEFT adapter"):
        bring(tmp_path / "empty", llama, tmp_path / "out")


def test_an_alpha_of_zero_is_an_adapter_that_changes_nothing(
    llama: Path, peft: Path, tmp_path: Path
) -> None:
    bring(damaged(peft, tmp_path / "zero", {"lora_alpha": 0}), llama, tmp_path / "out")
    base = load_base(str(llama))
    ids = mx.array([[1, 5, 9]])
    logits = base.model(ids)
    apply_adapter(base.model, tmp_path / "out")
    assert mx.array_equal(base.model(ids), logits)


def test_patterns_as_peft_writes_them_are_read(llama: Path, peft: Path, tmp_path: Path) -> None:
    config = {"alpha_pattern": {".*layers.2.*self_attn.q.*": 24}}
    bring(damaged(peft, tmp_path / "pattern", config), llama, tmp_path / "out")
    adapter, before = read_adapter(tmp_path / "out"), json.loads((peft / CONFIG).read_text())
    name = "model.layers.2.self_attn.q_proj.lora_b"
    stored: Any = mx.load(str(peft / WEIGHTS))
    b = stored[Q_A.replace("lora_A", "lora_B")]
    assert mx.allclose(
        adapter.weights[name] * adapter.scale, b.T * 24 / before["r"], rtol=1e-6
    ).item()


def test_factors_that_half_precision_does_not_hold_become_float32(
    llama: Path, peft: Path, tmp_path: Path
) -> None:
    def to_half(tensors: dict[str, mx.array]) -> None:
        tensors.update({n: v.astype(mx.float16) for n, v in tensors.items()})

    config = {"alpha_pattern": {"q_proj": 1e6}}
    bring(damaged(peft, tmp_path / "large", config, to_half), llama, tmp_path / "out")
    q = read_adapter(tmp_path / "out").weights["model.layers.2.self_attn.q_proj.lora_b"]
    assert q.dtype == mx.float32 and mx.isfinite(q).all().item()

    def huge(tensors: dict[str, mx.array]) -> None:
        tensors[Q_A.replace("lora_A", "lora_B")] *= 1e38

    with pytest.raises(OrpoError, match="too large for float32") as error:
        bring(damaged(peft, tmp_path / "huge", config, huge), llama, tmp_path / "no")
    assert "model.layers.2.self_attn.q_proj.lora_b" in str(error.value)
    assert not (tmp_path / "no").exists()


def test_the_base_is_reported_only_where_it_may_be_another(
    llama: Path, peft: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    for name, base in (("same", str(llama)), ("other", "org/other")):
        source = damaged(peft, tmp_path / name, {"base_model_name_or_path": base})
        how = ImportConfig(adapter=str(source), model=str(llama), output=tmp_path / f"{name}-out")
        import_peft(how, events.append)
    assert [e.text for e in events if isinstance(e, Notice) and "made for" in e.text] == [
        f"It was made for org/other: {llama} must hold that model."
    ]


def test_names_of_classes_for_text_and_for_images_are_the_same_modules(
    llama: Path, peft: Path, tmp_path: Path
) -> None:
    def renamed(tensors: dict[str, mx.array]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.model.", "model.model.language_model.")] = tensors.pop(name)

    bring(damaged(peft, tmp_path / "peft", tensors=renamed), llama, tmp_path / "out")
    assert (tmp_path / "out" / "adapters.safetensors").is_file()


def test_an_adapter_of_the_hub_is_fetched_without_pickle_or_code(
    llama: Path, peft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, set(allow_patterns)))
        return str(peft)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    import_peft(
        ImportConfig(
            adapter="user/name", adapter_revision="v2", model=str(llama), output=tmp_path / "out"
        )
    )
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("user/name", "v2")
    assert {WEIGHTS, CONFIG, "tokenizer.json"} <= patterns
    assert not any(p.endswith((".bin", ".py", "*")) for p in patterns)


def test_padded_dora_on_a_quantized_base_divides_by_the_bases_own_norms(
    quantized_llama: Path, tmp_path: Path
) -> None:
    adapted(quantized_llama, tmp_path / "run", ["q_proj"], kind="dora")
    export_peft(ExportConfig(adapter=tmp_path / "run", to="peft", output=tmp_path / "peft"))

    def first_alone(tensors: dict[str, mx.array]) -> None:
        for name in [n for n in tensors if ".layers.2." in n]:
            del tensors[name]

    source = damaged(tmp_path / "peft", tmp_path / "part", tensors=first_alone)
    bring(source, quantized_llama, tmp_path / "back")
    model = load_base(str(quantized_llama)).model
    layer = model.layers[2].self_attn.q_proj
    weight = mx.dequantize(
        layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits, dtype=mx.float32
    )
    m = read_adapter(tmp_path / "back").weights["model.layers.2.self_attn.q_proj.m"]
    assert mx.allclose(m, mx.linalg.norm(weight, axis=1), rtol=1e-6)  # float32
    before = model.layers[2](mx.ones((1, 4, 64), mx.bfloat16))
    apply_adapter(model, tmp_path / "back")
    after = model.layers[2](mx.ones((1, 4, 64), mx.bfloat16))
    assert mx.allclose(before, after, rtol=0.02, atol=0.02)  # bfloat16


def test_tokens_without_an_embedding_are_named(llama: Path, peft: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|n{i}|>" for i in range(60)]})
    folder = shutil.copytree(peft, tmp_path / "peft")
    tokenizer.save_pretrained(folder)
    events: list[Event] = []
    config = ImportConfig(adapter=str(folder), model=str(llama), output=tmp_path / "out")
    import_peft(config, events.append)
    rows = json.loads((llama / "config.json").read_text())["vocab_size"]
    beyond = len(tokenizer) - rows
    (text,) = [e.text for e in events if isinstance(e, Notice) and "no embedding" in e.text]
    assert text.startswith(f"{folder}: its tokenizer has {beyond} tokens (<|n{60 - beyond}|>, ")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
