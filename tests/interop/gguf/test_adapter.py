"""The adapter as GGUF, read back by the `gguf` package and rebuilt into weight changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from mlx.utils import tree_flatten

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice
from orpo_mlx.install_advice import pip_install
from orpo_mlx.interop.gguf.adapter import GgufExport, export_gguf
from orpo_mlx.model.adapters import WEIGHTS
from orpo_mlx.model.base import load_weights
from tests import tiny
from tests.parity.peft_bases import random_adapter

pytestmark = pytest.mark.touchy

RANK, SCALE = 4, 2.0
CLOSE = 1e-6  # float32, products of rank 4


def export(run: Path, output: Path, **settings: Any) -> tuple[GgufExport, list[Event]]:
    events: list[Event] = []
    config = ExportConfig(adapter=run, to="gguf", output=output, **settings)
    return export_gguf(config, events.append), events


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of a GGUF file."""
    reader = GGUFReader(file)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return fields, {t.name: np.array(t.data) for t in reader.tensors}


def weights(base: Path) -> dict[str, np.ndarray]:
    return {n: np.array(v) for n, v in tree_flatten(load_weights(base, "base")[0].parameters())}


def changes(base: Path, run: Path) -> dict[str, np.ndarray]:
    """What mlx-lm's own fusing adds to each weight, by its path."""
    model, _, _ = load_weights(base, "base")
    from orpo_mlx.model.adapters import apply_adapter

    apply_adapter(model, run)
    before = weights(base)
    fused = {p: m.fuse() for p, m in model.named_modules() if "lora_a" in m}
    return {p: np.array(m.weight) - before[f"{p}.weight"] for p, m in fused.items()}


def interleaved(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows of heads of `size`, row by row as llama.cpp's rope wants them."""
    order = []
    for start in range(0, len(rows), size):
        for i in range(size // 2):
            order += [start + i, start + i + size // 2]
    return rows[order]


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter on every linear layer of the tiny llama. Do not write there."""
    folder = tmp_path_factory.mktemp("adapter") / "polite"
    random_adapter(llama, folder, ["all-linear"], rank=RANK, scale=SCALE)
    return folder


def test_metadata_say_what_llama_cpp_asks_for(run: Path, tmp_path: Path) -> None:
    done, events = export(run, tmp_path / "out")
    fields, tensors = read(tmp_path / "out" / "adapter.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == done.architecture == "llama"
    assert fields["general.name"] == "polite"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == SCALE * RANK
    assert len(tensors) == done.tensors == 2 * 7 * 3
    assert done.files == ["Modelfile", "adapter.gguf"]
    assert isinstance(events[-1], Notice)
    assert events[-1].text == (
        f"Run it: llama-cli -m BASE.gguf --lora {tmp_path / 'out' / 'adapter.gguf'}"
    )


def test_factors_give_the_change_that_fusing_makes(run: Path, llama: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    fields, tensors = read(tmp_path / "out" / "adapter.gguf")
    expected = changes(llama, run)
    parts = {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    for path, change in expected.items():
        _, _, layer, _, part = path.split(".")
        name = f"blk.{layer}.{parts[part]}.weight"
        a, b = tensors.pop(f"{name}.lora_a"), tensors.pop(f"{name}.lora_b")
        assert a.shape[0] == b.shape[1] == RANK
        rows = interleaved(change, 16) if part in ("q_proj", "k_proj") else change
        actual = fields["adapter.lora.alpha"] / RANK * b @ a
        np.testing.assert_allclose(actual, rows, atol=CLOSE, rtol=0)
    assert not tensors


def test_experts_and_routers_keep_their_axes(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "qwen3_moe")
    random_adapter(base, tmp_path / "run", ["all-linear", "mlp.gate"], rank=RANK, scale=SCALE)
    export(tmp_path / "run", tmp_path / "out")
    _, tensors = read(tmp_path / "out" / "adapter.gguf")
    expected = changes(base, tmp_path / "run")
    parts = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    for ours, theirs in parts.items():
        name = f"blk.1.ffn_{theirs}_exps.weight"
        actual = SCALE * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]  # (E, out, in)
        change = expected[f"model.layers.1.mlp.switch_mlp.{ours}"]
        np.testing.assert_allclose(actual, change, atol=CLOSE, rtol=0)
    name = "blk.1.ffn_gate_inp.weight"
    actual = SCALE * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
    np.testing.assert_allclose(actual, expected["model.layers.1.mlp.gate"], atol=CLOSE, rtol=0)


def test_embedding_of_an_untied_model_has_a_row_a_token(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", tie_word_embeddings=False)
    random_adapter(base, tmp_path / "run", ["embed_tokens", "lm_head"], rank=RANK, scale=SCALE)
    export(tmp_path / "run", tmp_path / "out")
    _, tensors = read(tmp_path / "out" / "adapter.gguf")
    expected = changes(base, tmp_path / "run")
    a, b = (tensors[f"token_embd.weight.{leaf}"] for leaf in ("lora_a", "lora_b"))
    assert a.shape == (tiny.VOCABULARY, RANK)
    change = expected["model.embed_tokens"]
    np.testing.assert_allclose(SCALE * a @ b.T, change, atol=CLOSE, rtol=0)
    actual = SCALE * tensors["output.weight.lora_b"] @ tensors["output.weight.lora_a"]
    np.testing.assert_allclose(actual, expected["lm_head"], atol=CLOSE, rtol=0)


def test_half_precision_rounds_each_factor_once(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "whole")
    export(run, tmp_path / "half", outtype="f16")
    _, whole = read(tmp_path / "whole" / "adapter.gguf")
    _, half = read(tmp_path / "half" / "adapter.gguf")
    for name, value in whole.items():
        assert half[name].dtype == np.float16
        np.testing.assert_array_equal(half[name], value.astype(np.float16))


def test_weights_of_the_base_are_not_needed(llama: Path, run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    export(run, tmp_path / "out", model=str(bare))
    whole, _ = export(run, tmp_path / "other")
    assert (tmp_path / "out" / "Modelfile").read_text().count("FROM ./base.gguf") == 1
    _, one = read(tmp_path / "out" / "adapter.gguf")
    _, other = read(whole.output / "adapter.gguf")
    assert all(np.array_equal(value, other[name]) for name, value in one.items())


def test_modelfile_names_the_files_next_to_it(run: Path, llama: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "alone")
    assert (tmp_path / "alone" / "Modelfile").read_text() == (
        "# ollama create NAME -f Modelfile\n"
        f"# The base, {llama.name}, as GGUF: put it next to this file as base.gguf, or write its "
        "name in Ollama's library here.\n"
        "FROM ./base.gguf\nADAPTER ./adapter.gguf\n"
    )
    done, events = export(run, tmp_path / "both", with_base=True)
    assert done.files == ["Modelfile", "adapter.gguf", "base.gguf"]
    assert (tmp_path / "both" / "Modelfile").read_text() == (
        "# ollama create NAME -f Modelfile\nFROM ./base.gguf\nADAPTER ./adapter.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}"
        '<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"""\n'
    )
    both = tmp_path / "both"
    assert isinstance(events[-1], Notice)
    assert events[-1].text == (
        f"Run it: llama-cli -m {both / 'base.gguf'} --lora {both / 'adapter.gguf'}"
    )


def refusal(run: Path, tmp_path: Path, **settings: Any) -> str:
    """The message; nothing may be left behind."""
    with pytest.raises(OrpoError) as caught:
        export(run, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_an_embedding_adapter_on_a_tied_model_is_refused(llama: Path, tmp_path: Path) -> None:
    random_adapter(llama, tmp_path / "run", ["embed_tokens", "q_proj"])
    assert refusal(tmp_path / "run", tmp_path) == (
        f"Adapter {tmp_path / 'run'} cannot be written as a GGUF adapter:\n"
        "  model.embed_tokens: the head shares its weights, and llama.cpp aborts on such an "
        "adapter\nFuse it instead: --fused."
    )


def test_dora_is_refused_and_can_be_fused(llama: Path, tmp_path: Path) -> None:
    random_adapter(llama, tmp_path / "run", ["q_proj"], kind="dora")
    assert refusal(tmp_path / "run", tmp_path) == (
        f"Adapter {tmp_path / 'run'}: GGUF has no DoRA: its magnitudes would be lost. "
        "Fuse it instead: --fused."
    )
    export(tmp_path / "run", tmp_path / "out", fused=True, outtype="f32")
    _, tensors = read(tmp_path / "out" / "model.gguf")
    change = changes(llama, tmp_path / "run")["model.layers.0.self_attn.q_proj"]
    whole = weights(llama)["model.layers.0.self_attn.q_proj.weight"] + change
    actual = tensors["blk.0.attn_q.weight"]
    np.testing.assert_allclose(actual, interleaved(whole, 16), atol=CLOSE, rtol=0)


def test_a_scale_of_zero_is_refused(llama: Path, tmp_path: Path) -> None:
    random_adapter(llama, tmp_path / "run", ["q_proj"], scale=0.0)
    assert "its scale is 0, which llama.cpp reads as 1." in refusal(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("family", ["qwen3_next", "cohere2", "gpt_oss"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, family: str) -> None:
    base = tiny.save_base(tmp_path / "base", family)
    random_adapter(base, tmp_path / "run", ["o_proj"])
    actual = refusal(tmp_path / "run", tmp_path)
    assert actual.startswith(f"--to gguf: an adapter of model_type '{family}' cannot be written")


def test_unproven_architectures_are_written_with_a_warning(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "gemma2")
    random_adapter(base, tmp_path / "run", ["q_proj"])
    _, events = export(tmp_path / "run", tmp_path / "out")
    warnings = [e.text for e in events if isinstance(e, Notice) and e.warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("gemma2: ")
    assert "cannot be written" in refusal(tmp_path / "run", tmp_path / "x", fused=True)


def test_an_adapter_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    other = tiny.save_base(tmp_path / "other", hidden_size=32)
    actual = refusal(run, tmp_path, model=str(other))
    assert "does not fit this model" in actual
    assert "lora_a: adapter shape (64, 4) does not match model parameter shape (32, 4)" in actual


def test_a_damaged_adapter_leaves_an_earlier_export_as_it_was(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in run.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(OrpoError, match="is damaged"):
        export(damaged, tmp_path / "out", overwrite=True)
    with pytest.raises(OrpoError, match="exists. Replace it with --overwrite"):
        export(run, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    export(run, tmp_path / "out", overwrite=True, outtype="f16")
    _, tensors = read(tmp_path / "out" / "adapter.gguf")
    assert {v.dtype for v in tensors.values()} == {np.dtype("f2")}


def test_what_is_read_is_never_replaced(run: Path, llama: Path) -> None:
    with pytest.raises(OrpoError, match=r"holds the adapter\. Name another folder\."):
        export(run, run, overwrite=True)
    with pytest.raises(OrpoError, match=r"holds the base\. Name another folder\."):
        export(run, llama.parent, overwrite=True)
    assert (run / WEIGHTS).is_file() and (llama / "config.json").is_file()


def test_a_missing_package_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    assert pip_install("gguf") in refusal(run, tmp_path)
