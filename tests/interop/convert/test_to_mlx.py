"""Conversion against mlx-lm's own `convert`, and what it refuses, tells and leaves behind."""

import json
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from mlx.utils import tree_flatten
from mlx_lm.utils import save_model
from safetensors import safe_open

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Notice, Progress
from orpo_mlx.interop.checkpoint import shards
from orpo_mlx.interop.checkpoint.sidecar import CONVERT_REPORT
from orpo_mlx.interop.convert import to_mlx as convert_module
from orpo_mlx.interop.convert.to_mlx import Converted, convert
from tests import tiny
from tests.interop.gguf.test_to_hf import write_tiny_gguf

pytestmark = pytest.mark.touchy

# Next to --bits and --group-size 32 these are mlx-lm's own settings of the same names.
WAYS: list[dict[str, Any]] = [
    {},
    {"dtype": "float16"},
    *({"bits": bits, "group_size": 32} for bits in (2, 3, 4, 5, 6, 8)),
    {"bits": 4, "group_size": 32, "dtype": "bfloat16"},
    {"mode": "mxfp4"},
    {"mode": "nvfp4", "bits": 4},
    {"mode": "mxfp8", "group_size": 32},
    {"recipe": "mixed_2_6", "group_size": 32},
    {"recipe": "mixed_3_4", "group_size": 32},
]


def converted(source: Path, output: Path, **options: Any) -> tuple[Converted, list[Event]]:
    events: list[Event] = []
    done = convert(ConvertConfig(source=source, output=output, **options), events.append)
    return done, events


def notices(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


def failure(source: object, output: Path, **options: Any) -> str:
    with pytest.raises(OrpoError) as caught:
        converted(Path(str(source)), output, **options)
    return str(caught.value)


def weights(folder: Path) -> dict[str, mx.array]:
    return {n: v for f in folder.glob("model*.safetensors") for n, v in mx.load(str(f)).items()}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("way", WAYS, ids=lambda w: "-".join(map(str, w.values())) or "plain")
def test_weights_and_config_are_those_of_mlx_lm(
    tmp_path: Path, family: str, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.save_base(tmp_path / "base", family)
    # A card is looked for on the Hub where a folder has none.
    monkeypatch.setattr("mlx_lm.utils.create_model_card", lambda *_: None)
    recipe = way.get("recipe")
    mlx_lm.convert(
        str(source),
        str(tmp_path / "theirs"),
        quantize=bool({*way} - {"dtype"}),
        q_group_size=way.get("group_size"),
        q_mode=way.get("mode", "affine"),
        q_bits=way.get("bits") or (int(recipe[6]) if recipe else None),
        quant_predicate=recipe,
        dtype=way.get("dtype"),
    )
    done, _ = converted(source, tmp_path / "ours", **way)
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert mx.array_equal(value, theirs[name]), name
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("ours", "theirs")]
    assert configs[0] == configs[1]
    assert done.size_bytes == sum(value.nbytes for value in ours.values())


def test_the_size_reported_before_is_the_size_after(llama: Path, tmp_path: Path) -> None:
    done, events = converted(llama, tmp_path / "out", bits=4, group_size=32)
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0 < size - done.size_bytes < 20_000  # the header
    text = f"{done.source_bytes / 1e3:.1f} kB of weights become {done.size_bytes / 1e3:.1f} kB"
    first = next(i for i, event in enumerate(events) if isinstance(event, Progress))
    assert text in notices(events[:first])
    assert 5 < done.bits_per_weight < 7  # 4, and scale and bias of 32 bits for 32 weights


def test_a_large_model_is_cut_into_shards_with_an_index(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "save_shards", partial(shards.save_shards, shard_bytes=100_000))
    converted(llama, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "np") as opened:
            assert opened.metadata() == {"format": "mlx"}
            np.testing.assert_array_equal(
                opened.get_tensor(name), np.array(weights(llama)[name]), err_msg=name
            )
    assert index["weight_map"].keys() == weights(llama).keys()
    mlx_lm.load(str(tmp_path / "out"))


def test_memory_holds_a_few_tensors_and_not_the_model(tmp_path: Path) -> None:
    source = tiny.save_base(
        tmp_path / "base", num_hidden_layers=24, hidden_size=256, intermediate_size=1024
    )
    total = sum(value.nbytes for value in weights(source).values())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    converted(source, tmp_path / "out", bits=4)
    largest = 1024 * 256 * 4
    assert total > 60 * largest
    assert mx.get_peak_memory() - before < 6 * largest


def test_files_next_to_the_weights_are_copied(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base")
    (source / "generation_config.json").write_text('{"temperature": 0.7}')
    (source / "modeling_own.py").write_text("own = 1\n")
    (source / "hf_quant_config.json").write_text("{}")
    (source / "README.md").write_text("a card\n")
    converted(source, tmp_path / "out", bits=8, group_size=32)
    for name in (
        "generation_config.json",
        "modeling_own.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


def test_settings_of_transformers_5_are_written_where_mlx_lm_reads_them(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base")
    config = json.loads((source / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    (source / "config.json").write_text(json.dumps(config))
    _, events = converted(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 500000.0
    assert notices(events).startswith("rope_theta: written into config.json where mlx-lm reads it")


def test_towers_that_mlx_lm_leaves_out_are_reported(tmp_path: Path) -> None:
    text = tiny.build_model("gemma3_text")[1]
    source = tiny.save_base(tmp_path / "base", "gemma3_text")
    model, config = tiny.build_model("gemma3_text", model_type="gemma3", text_config=text)
    save_model(source, model)
    (source / "config.json").write_text(json.dumps(config | {"vision_config": {}}))
    _, events = converted(source, tmp_path / "out")
    assert "towers for images and sound are left out" in notices(events)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 32}, "--group-size: needs --bits"),
        ({"mode": "affine"}, "--mode: needs --bits"),
        ({"bits": 4, "group_size": 16}, "--group-size 16: not with --mode affine (allowed: 32, 64"),
        ({"bits": 8, "mode": "mxfp4"}, "--bits 8: not with --mode mxfp4 (allowed: 4)"),
        ({"bits": 4, "mode": "nvfp4", "group_size": 32}, "--group-size 32: not with --mode nvfp4"),
        ({"bits": 4, "recipe": "mixed_2_6"}, "the recipe names its bits"),
        ({"mode": "mxfp8", "recipe": "mixed_2_6"}, "not with --mode mxfp8"),
        ({"dequantize": True, "bits": 4}, "--dequantize and --bits: give one of them"),
        ({"dequantize": True, "report": True}, "there is nothing to measure"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        ConvertConfig(source="base", output="out", **options)
    assert message in str(caught.value)


def test_a_full_disk_is_foreseen(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    message = failure(llama, tmp_path / "out")
    assert message.startswith("468.7 kB will be written, but only 1.0 kB are free")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_reported_and_what_is_there_stays(llama: Path, tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "base")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is damaged" in failure(source, tmp_path / "out", overwrite=True)
    assert "Replace it with --overwrite" in failure(llama, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    source = tiny.save_base(tmp_path / "models" / "base")
    for output in (source, source.parent):
        message = failure(source, output, overwrite=True)
        assert message == f"--output {output} holds the source. Name another folder."


def test_a_gguf_file_in_the_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_tiny_gguf(tmp_path / "models" / "m.GGUF", Kind.Q8_0)
    message = failure(tmp_path / "models" / "m.GGUF", tmp_path / "models", overwrite=True)
    assert message == f"--output {tmp_path / 'models'} holds the source. Name another folder."
    assert (tmp_path / "models" / "m.GGUF").is_file()


def test_a_source_that_is_not_a_model_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = failure(tmp_path / "empty", tmp_path / "out")
    assert message.startswith(f"SOURCE {tmp_path / 'empty'}: no config.json")


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"dtype": "bfloat16"}])
def test_a_gguf_file_becomes_an_mlx_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = write_tiny_gguf(tmp_path / "tiny.gguf", Kind.Q8_0)
    converted(tmp_path / "tiny.gguf", tmp_path / "out", **options)
    model, _ = mlx_lm.load(str(tmp_path / "out"))
    divergence = dict(tree_flatten(model.parameters()))
    assert ("model.layers.0.self_attn.q_proj.scales" in divergence) == ("bits" in options)
    norm = divergence["model.layers.0.input_layernorm.weight"]
    assert norm.dtype == (mx.bfloat16 if "dtype" in options else mx.float32)
    if not options:
        np.testing.assert_array_equal(norm, expected["model.layers.0.input_layernorm.weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny.gguf"]


def test_the_report_is_what_both_models_compute(llama: Path, tmp_path: Path) -> None:
    done, _ = converted(llama, tmp_path / "out", bits=4, group_size=32, report=True)
    divergence = done.divergence
    assert divergence is not None
    assert json.loads((tmp_path / "out" / CONVERT_REPORT).read_text()) == divergence._asdict()
    (before, tokenizer), (after, _) = mlx_lm.load(str(llama)), mlx_lm.load(str(tmp_path / "out"))
    text = Path(convert_module.__file__).with_name("measured_text.txt").read_text()
    ids = tokenizer.encode(text, add_special_tokens=False)
    rows = []
    for start in range(0, len(ids) - 1, 256):
        window = ids[start : start + 256]
        p, q = (_probabilities(model, window[:-1]) for model in (before, after))
        targets = (np.arange(len(window) - 1), window[1:])
        kl = (p * np.log(p / q)).sum(-1)
        same = p.argmax(-1) == q.argmax(-1)
        rows.append(np.stack([-np.log(p[targets]), -np.log(q[targets]), kl, same], axis=1))
    expected = np.concatenate(rows).mean(axis=0)
    assert divergence.tokens == sum(map(len, rows))
    # float32 logits of a quantized matmul, and of its float32 twin
    assert divergence.perplexity_original == pytest.approx(np.exp(expected[0]), rel=1e-4)
    assert divergence.perplexity == pytest.approx(np.exp(expected[1]), rel=1e-4)
    assert divergence.kl == pytest.approx(expected[2], rel=1e-3)
    assert divergence.top1_agreement == pytest.approx(expected[3], abs=1e-3)


def _probabilities(model: Any, ids: list[int]) -> np.ndarray:
    logits = np.array(model(mx.array([ids]))[0].astype(mx.float32), np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_an_unchanged_model_diverges_nowhere(llama: Path, tmp_path: Path) -> None:
    done, _ = converted(llama, tmp_path / "out", report=True)
    assert done.divergence is not None
    assert done.divergence.perplexity == done.divergence.perplexity_original
    assert (done.divergence.kl, done.divergence.top1_agreement) == (0.0, 1.0)
