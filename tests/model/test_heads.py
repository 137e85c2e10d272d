"""A head in the files next to the embedding: a copy is dropped, a head of its own is kept."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.interop.checkpoint.transformers_rules import (
    check_as_transformers,
    check_plain_names,
)
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.interop.fuse import merge
from orpo_mlx.model.base import load_base, load_weights
from orpo_mlx.model.stored.heads import HEADS
from tests import tiny
from tests.interop.adapted import IDS, adapted, farthest, fused, fused_logits, logits

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAMES = {"internlm2": ("model.tok_embeddings.weight", "output.weight")}
KEY = "tie_word_embeddings"


def tensors_of(folder: Path) -> dict[str, mx.array]:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    return tensors


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def save_with_head(folder: Path, family: str = "llama", own: float = 0.0, **config: Any) -> Path:
    """A tied base that stores a head, too: the embedding * (1 + own) + own."""
    tiny.save_base(folder, family, **config)
    tensors = tensors_of(folder)
    prefix = "language_model." if f"language_model.{EMBEDDING}" in tensors else ""
    embedding, head = NAMES.get(family, (EMBEDDING, HEAD))
    value = tensors[prefix + embedding]
    tensors[prefix + head] = value * (1 + own) + own
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


def without_head(folder: Path) -> None:
    kept = {n: v for n, v in tensors_of(folder).items() if n.split(".")[-2] not in HEADS}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)


def forget_key(folder: Path) -> None:
    config = config_of(folder)
    del config[KEY]
    (folder / "config.json").write_text(json.dumps(config))


COPIES = ["llama", "granite", "lfm2", "gemma2", "gemma3_text", "cohere2", "internlm2", "qwen3_5"]


@pytest.mark.parametrize("family", COPIES)
def test_a_copy_of_the_embedding_is_dropped(tmp_path: Path, family: str) -> None:
    folder = save_with_head(tmp_path / "base", family)
    model, _, notices = load_weights(folder, "base")
    without_head(folder)
    expected, _, _ = load_weights(folder, "plain")
    assert mx.array_equal(model(IDS), expected(IDS))
    assert not [n for n, _ in tree_flatten(model.parameters()) if "lm_head" in n or "output." in n]
    assert not notices


@pytest.mark.parametrize(
    ("family", "dequantize"), [("llama", False), ("granite", True), ("lfm2", False)]
)
def test_a_changed_embedding_has_no_stale_copy(
    tmp_path: Path, family: str, dequantize: bool
) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    save_with_head(base, family)
    adapted(base, run, ["embed_tokens", "q_proj"])
    fused(run, out, verify=family == "llama", dequantize=dequantize)
    check_as_transformers(out, [*tensors_of(base).keys() - {HEAD}])
    assert HEAD not in tensors_of(out)
    assert config_of(out)[KEY] is True
    assert farthest(fused_logits(out), logits(base, run)) < 1e-4
    convert(ConvertConfig(source=str(base), output=tmp_path / "mlx"), lambda event: None)
    assert HEAD not in tensors_of(tmp_path / "mlx")


def test_a_stale_copy_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_with_head(tmp_path / "base")
    adapted(base, tmp_path / "run", ["embed_tokens"])
    monkeypatch.setattr(merge, "without_copies", lambda stored, parameters: dict(stored))
    with pytest.raises(OrpoError, match=r"Not in both .* fused model:\n  lm_head\.weight"):
        fused(tmp_path / "run", tmp_path / "out", verify=True)


@pytest.mark.parametrize("keyless", [False, True])
@pytest.mark.parametrize("family", ["llama", "granite", "qwen2", "starcoder2", "qwen3_5"])
def test_a_head_of_its_own_is_loaded_and_written_so(
    tmp_path: Path, family: str, keyless: bool
) -> None:
    base = save_with_head(tmp_path / "base", family, own=0.5)
    if keyless and family != "qwen3_5":
        forget_key(base)
    loaded = load_base(str(base))
    prefix = "language_model." if family == "qwen3_5" else ""
    stored = tensors_of(base)[prefix + HEAD]
    head = loaded.model.language_model.lm_head if prefix else loaded.model.lm_head
    assert mx.array_equal(head.weight, stored)
    assert "is loaded as a head of its own, as transformers does" in loaded.notices[0]
    for output, dequantize in (("mlx", False), *([] if prefix else [("plain", True)])):
        options = ConvertConfig(source=str(base), output=tmp_path / output, dequantize=dequantize)
        events: list[Any] = []
        convert(options, events.append)
        assert events[0].text == loaded.notices[0]
        assert mx.array_equal(tensors_of(tmp_path / output)[prefix + HEAD], stored)
        config = config_of(tmp_path / output)
        assert config[KEY] is False
        assert config.get("text_config", config)[KEY] is False
        assert not load_base(str(tmp_path / output)).notices
        assert mx.array_equal(fused_logits(tmp_path / output), logits(base))


def test_adapters_of_embedding_and_head_are_fused_apart(tmp_path: Path) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    save_with_head(base, own=0.5)
    adapted(base, run, ["embed_tokens", "lm_head"])
    fused(run, out, verify=True)
    assert config_of(out)[KEY] is False
    assert farthest(fused_logits(out), logits(base, run)) < 1e-4
    before, after = tensors_of(base), tensors_of(out)
    assert before.keys() == after.keys()
    changes = [mx.abs(after[n] - before[n]).max().item() for n in (EMBEDDING, HEAD)]
    assert min(changes) > 0.01


def test_a_head_of_its_own_is_refused_where_mlx_lm_has_none(tmp_path: Path) -> None:
    base = save_with_head(tmp_path / "base", "gemma2", own=0.5)
    with pytest.raises(OrpoError, match=r"differs from .*type gemma2 computes its head from the"):
        load_base(str(base))


def test_a_tied_head_of_more_rows_than_the_embedding_is_not_dropped(tmp_path: Path) -> None:
    base = planted(tmp_path / "base", **{HEAD: mx.ones((tiny.VOCABULARY + 8, 64))})
    with pytest.raises(OrpoError, match=r"lm_head\.weight"):
        load_base(str(base))


def test_an_untied_config_without_a_head_names_the_key(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base", **{KEY: False})
    without_head(folder)
    with pytest.raises(OrpoError, match=r"no head is stored, and tie_word_embeddings .* not true"):
        load_base(str(folder))


def test_where_nothing_is_written_down_the_written_folder_is_tied(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    forget_key(folder)
    expected = logits(folder)
    convert(ConvertConfig(source=str(folder), output=tmp_path / "mlx"), lambda event: None)
    assert config_of(tmp_path / "mlx")[KEY] is True  # transformers' Llama does not tie by itself
    assert mx.array_equal(logits(tmp_path / "mlx"), expected)


def test_quantized_heads_are_compared_too(tmp_path: Path) -> None:
    for name, factor in (("copy", 1.0), ("own", 2.0)):
        folder = tiny.save_base(tmp_path / name, bits=4)
        tensors = tensors_of(folder)
        for part in ("weight", "scales", "biases"):
            value = tensors[f"model.embed_tokens.{part}"]
            tensors[f"lm_head.{part}"] = value if part == "weight" else value * factor
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        model, config, notices = load_weights(folder, name)
        assert ("lm_head" in model) == (name == "own") == bool(notices)
        assert config[KEY] is (name == "copy")


def planted(folder: Path, **changes: Any) -> Path:
    """A plain base with tensors added, or removed where they are None, and settings changed."""
    tiny.save_base(folder, **{KEY: changes.pop(KEY, True)})
    tensors = tensors_of(folder) | changes
    kept = {name: value for name, value in tensors.items() if value is not None}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)
    return folder


def test_the_check_knows_what_transformers_would_load(tmp_path: Path) -> None:
    names = [*tensors_of(tiny.save_base(tmp_path / "base"))]
    check_as_transformers(tmp_path / "base", names)
    check_plain_names(tmp_path / "base")
    torn = planted(tmp_path / "torn", **{HEAD: mx.ones((tiny.VOCABULARY, 64))})
    with pytest.raises(OrpoError, match="lm_head.weight differs from the embedding although"):
        check_as_transformers(torn)
    bare = planted(tmp_path / "bare", **{KEY: False, HEAD: None})
    with pytest.raises(OrpoError, match="the head would begin at random"):
        check_as_transformers(bare)
    norm = {"model.norm.weight": None, "model.norm.gamma": mx.ones((64,))}
    renamed = planted(tmp_path / "renamed", **norm)
    for check in (check_plain_names, lambda folder: check_as_transformers(folder, names)):
        with pytest.raises(OrpoError) as error:
            check(renamed)
        assert "model.norm.weight: not there, so it would begin at random" in str(error.value)
        assert "model.norm.gamma: a name that it does not look for" in str(error.value)
