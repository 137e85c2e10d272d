"""What goes along with the weights: config, tokenizer, template, end tokens, code."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orpo_mlx.interop.checkpoint.sidecar import write_sidecar
from orpo_mlx.model.base import load_base
from orpo_mlx.model.tokenizer import save_tokenizer
from tests import tiny
from tests.interop.adapted import adapted, fused


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tiny.save_base(tmp_path / "base", bits=4)
    for name in (
        "modeling_x.py",
        "LICENSE",
        "preprocessor_config.json",
        "README.md",
        "pytorch.bin",
    ):
        (folder / name).write_text("x")
    (folder / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.6}')
    return folder


def test_what_belongs_to_the_model_goes_along(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "out")
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"modeling_x.py", "LICENSE", "preprocessor_config.json", "tokenizer.json"} < names
    assert not {"README.md", "pytorch.bin", "adapter_config.json", "adapters.safetensors"} & names
    assert (tmp_path / "out" / "generation_config.json").read_text() == (
        base / "generation_config.json"
    ).read_text()


def test_the_runs_tokenizer_template_and_end_tokens_replace_the_bases(
    base: Path, tmp_path: Path
) -> None:
    adapted(base, tmp_path / "run", ["q_proj"])
    own = load_base(str(base), eos_token="<|endoftext|>", chat_template="{{ 'ours' }}").tokenizer
    save_tokenizer(own, tmp_path / "run")
    events: list[Any] = []
    fused(tmp_path / "run", tmp_path / "out", report=events.append)
    # A template that writes no answer: nothing can be measured on it.
    assert "The models are not compared: 32 rows cannot be rendered" in events[-1].text
    written = load_base(str(tmp_path / "out")).tokenizer
    assert written.chat_template == "{{ 'ours' }}"
    assert (
        written.eos_token_ids == own.eos_token_ids != load_base(str(base)).tokenizer.eos_token_ids
    )
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": sorted(own.eos_token_ids), "temperature": 0.6}


def test_a_plain_folder_has_a_plain_config(base: Path, tmp_path: Path) -> None:
    stored = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(stored | {"dtype": "float32"}))
    adapted(base, tmp_path / "run", ["q_proj"])
    fused(tmp_path / "run", tmp_path / "out", dequantize=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {k: v for k, v in stored.items() if not k.startswith("quantization")} | {
        "dtype": "bfloat16"
    }  # that of the scales
    weights = dict(mx.load(str(tmp_path / "out" / "model.safetensors")))
    assert {v.dtype for v in weights.values()} == {mx.bfloat16}


def test_rope_is_where_mlx_lm_reads_it(tmp_path: Path) -> None:
    for name in ("base", "run", "out"):
        (tmp_path / name).mkdir()
    config = {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    write_sidecar(
        tmp_path / "base", tmp_path / "run", tmp_path / "out", dequantized=False, dtype=None
    )
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == config | {"rope_theta": 500000.0, "rope_scaling": None}
