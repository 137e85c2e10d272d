"""Adapter folders of other tools are read, and a config that does not match its file is refused."""

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import lora as mlx_lm_lora

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.adapters import apply_adapter, read_adapter, save_adapter
from orpo_mlx.model.base import load_base
from tests import tiny
from tests.model.test_adapters import IDS, adapted, farthest

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]


def trained_by_mlx_lm(base: Path, folder: Path, **settings: Any) -> Path:
    """What `mlx_lm.lora --train` leaves behind after two steps."""
    data = folder.parent / "data"
    data.mkdir()
    for name in ("train", "valid"):
        rows = (json.dumps({"text": "please check the light " * 4}) for _ in range(8))
        (data / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    wanted = {
        "model": str(base),
        "data": str(data),
        "adapter_path": str(folder),
        "train": True,
        "iters": 2,
        "save_every": 1,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "num_layers": 2,
    }
    mlx_lm_lora.run(SimpleNamespace(**mlx_lm_lora.CONFIG_DEFAULTS | wanted | settings))
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_folders_of_mlx_lm_give_mlx_lms_logits(llama: Path, tmp_path: Path, kind: str) -> None:
    folder = trained_by_mlx_lm(llama, tmp_path / "adapters", fine_tune_type=kind)
    assert (folder / "0000001_adapters.safetensors").is_file()
    adapter = read_adapter(folder)
    assert (adapter.kind, adapter.num_layers) == (kind, 2)
    assert adapter.config["model"] == str(llama)
    theirs, _ = mlx_lm.load(str(llama), adapter_path=str(folder))
    ours = load_base(str(llama)).model
    untouched = ours(IDS)
    apply_adapter(ours, folder)
    assert mx.array_equal(ours(IDS), theirs(IDS))
    assert farthest(ours(IDS), untouched) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_folders_of_mlx_lm_lora_are_read(llama: Path, tmp_path: Path, kind: str) -> None:
    """Its config, from its sources: no fine_tune_type, DoRA among the parameters, -1 layers."""
    folder = trained_by_mlx_lm(llama, tmp_path / "a", fine_tune_type=kind, num_layers=-1)
    expected, _ = mlx_lm.load(str(llama), adapter_path=str(folder))
    parameters = {
        "rank": 8,
        "dropout": 0.0,
        "scale": 20.0,
        "use_dora": kind == "dora",
        "num_layers": -1,
    }
    config = {"lora_parameters": parameters, "num_layers": -1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    ours = load_base(str(llama)).model
    apply_adapter(ours, folder)
    assert mx.array_equal(ours(IDS), expected(IDS))


def test_a_full_fine_tune_of_mlx_lm_lora_is_read(llama: Path, tmp_path: Path) -> None:
    """Its config is the model's own."""
    adapted(llama, tmp_path / "adapter", ["all-linear"], "full")
    expected = load_base(str(llama)).model
    apply_adapter(expected, tmp_path / "adapter")
    shutil.copy(llama / "config.json", tmp_path / "adapter" / "adapter_config.json")
    assert read_adapter(tmp_path / "adapter").kind == "full"
    ours = load_base(str(llama)).model
    apply_adapter(ours, tmp_path / "adapter")
    assert mx.array_equal(ours(IDS), expected(IDS))


def test_folders_with_something_else_get_a_hint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "0000100_adapters.safetensors").write_text("")
    with pytest.raises(OrpoError, match=r"you want \(0000100_adapters.safetensors\) to that name"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("")
    with pytest.raises(OrpoError, match="PEFT's layout: import it with orpo-mlx import"):
        read_adapter(tmp_path)


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    adapted(llama, tmp_path / "adapter", ["q_proj", "v_proj"])
    return tmp_path / "adapter"


CONFIGS: list[tuple[Any, str]] = [
    ("{", "is damaged (Expecting"),
    ("[]", "is damaged (not a JSON object)"),
    ("[" * 100_000, "is damaged ("),
    ("\ud800", "is damaged ("),
    ({"num_layers": "two"}, "num_layers is 'two' (allowed: a number of blocks, or -1)"),
    ({"num_layers": True}, "num_layers is True"),
    ({"fine_tune_type": "ia3"}, "fine_tune_type is 'ia3' (allowed: lora, dora, full)"),
    ({"fine_tune_type": "dora"}, "q_proj: has lora_a, lora_b (a dora has lora_a, lora_b, m)"),
    ({"fine_tune_type": "full"}, "q_proj.lora_a: part of an adapter, not a weight of a model"),
    ({"lora_parameters": None}, "lora_parameters is not a JSON object"),
    ({"rank": 4.0}, "rank is 4.0 (allowed: 1 or more)"),
    ({"rank": 8}, "q_proj: has rank 4, the config gives 8"),
    ({"scale": float("nan")}, "scale is nan (allowed: up to 1,000,000)"),
    ({"scale": None, "alpha": 16}, "mlx-lm reads scale, not alpha"),
    ({"dropout": 1.0}, "dropout is 1.0 (allowed: at least 0, less than 1)"),
    ({"keys": "q_proj"}, "keys is 'q_proj' (allowed: a list of names)"),
    ({"keys": ["self_attn.q_proj", "up_proj"]}, "up_proj: listed in keys, but it has no tensor"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_a_config_that_does_not_match_the_file_is_refused(
    adapter: Path, change: Any, message: str
) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    if isinstance(change, str):
        file.write_bytes(change.encode(errors="surrogatepass"))
    else:
        inner = {"rank", "scale", "dropout", "keys", "alpha"} & set(change)
        (config["lora_parameters"] if inner else config).update(change)
        file.write_text(json.dumps(config))
    with pytest.raises(OrpoError) as caught:
        read_adapter(adapter)
    assert message in str(caught.value)


TENSORS: list[tuple[str, Any, str]] = [
    ("lora_a", lambda a: a.astype(mx.int32), "its type is I32 (allowed: F32, F16, BF16)"),
    ("lora_a", lambda a: a[:, :3], "lora_a (64, 3) and lora_b (4, 64) do not fit each other"),
    ("lora_b", lambda b: b[None], "lora_a (64, 4) and lora_b (1, 4, 64) do not fit each other"),
    ("lora_b", lambda b: b[:, :0], "lora_a (64, 4) and lora_b (4, 0) do not fit each other"),
    ("lora_b", lambda b: b * mx.inf, "has NaN or infinite values:\n  model.layers.1"),
]


@pytest.mark.parametrize(("leaf", "change", "message"), TENSORS)
def test_tensors_that_cannot_be_an_adapter_are_refused(
    adapter: Path, leaf: str, change: Any, message: str
) -> None:
    weights: Any = mx.load(str(adapter / "adapters.safetensors"))
    name = f"model.layers.1.self_attn.q_proj.{leaf}"
    config = json.loads((adapter / "adapter_config.json").read_text())
    save_adapter(adapter, {**weights, name: change(weights[name])}, config)
    with pytest.raises(OrpoError) as caught:
        read_adapter(adapter)
    assert message in str(caught.value)


def test_a_file_that_ends_early_is_refused(adapter: Path) -> None:
    file = adapter / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(OrpoError, match="is damaged"):
        read_adapter(adapter)


def test_a_file_without_tensors_is_refused(adapter: Path) -> None:
    (adapter / "adapters.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(OrpoError, match="it has no tensors"):
        read_adapter(adapter)


def test_a_checkpoint_of_a_run_is_an_adapter_too(llama: Path, tmp_path: Path) -> None:
    from orpo_mlx.config.train import TrainConfig
    from orpo_mlx.training.loop import train

    data = [str(tiny.save_pairs(tmp_path / "pairs.jsonl", 16))]
    config = TrainConfig(
        model=str(llama), data=data, output=tmp_path / "run", steps=2, batch_size=2, save_every=1
    )
    train(config)
    assert read_adapter(tmp_path / "run" / "checkpoints" / "step-0000001").kind == "lora"
