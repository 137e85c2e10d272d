"""Files of weights next to those of the model: the index decides, and the others are named."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Notice
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.model.base import load_base, load_weights
from tests import tiny
from tests.interop.adapted import adapted, fused, fused_logits, logits

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Tensors = dict[str, mx.array]


def in_two_shards(folder: Path) -> Tensors:
    """Cut a base into two indexed shards; returns its tensors."""
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [names[:10], names[10:]]
    for file, part in zip(files, parts, strict=True):
        save(folder / file, {name: tensors[name] for name in part})
    placed = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return tensors


def save(file: Path, tensors: Tensors) -> None:
    mx.save_safetensors(str(file), tensors, metadata={"format": "pt"})


def wrong(tensors: Tensors) -> Tensors:
    return {name: value * 0 + 3 for name, value in tensors.items()}


def older_shards(folder: Path, tensors: Tensors) -> list[str]:
    names = [f"model-{n:05}-of-00012.safetensors" for n in range(1, 13)]
    for name in names:
        save(folder / name, wrong(tensors))
    return names


def older_single(folder: Path, tensors: Tensors) -> list[str]:
    save(folder / "model.safetensors", wrong(tensors))
    return ["model.safetensors", "transformers would read model.safetensors"]


def other_names(folder: Path, tensors: Tensors) -> list[str]:
    save(folder / "model-extra.safetensors", {"model.layers.9.x.weight": tensors[NORM]})
    return ["model-extra.safetensors"]


def pointer(folder: Path, tensors: Tensors) -> list[str]:
    (folder / "model-00001-of-00004.safetensors").write_text("version https://git-lfs\n")
    return ["model-00001-of-00004.safetensors"]


STRAYS = [older_shards, older_single, other_names, pointer]


@pytest.mark.parametrize("add", STRAYS)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_the_index_does_not_name_is_not_read(
    tmp_path: Path, add: Callable[[Path, Tensors], list[str]], lazy: bool
) -> None:
    folder = tiny.save_base(tmp_path / "base")
    expected = in_two_shards(folder)
    named = add(folder, expected)
    model, _, notices = load_weights(folder, "base", lazy=lazy)
    for name, value in expected.items():
        assert mx.array_equal(value, weight_of(model, name)), name
    text = " ".join(notices)
    assert all(name in text for name in (named[0], named[-1]) if len(named) < 4)
    assert named[0] in text
    assert INDEX in text


def weight_of(model: object, path: str) -> mx.array:
    value = model
    for part in path.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert isinstance(value, mx.array)
    return value


@pytest.mark.parametrize("variant", ["model.fp16.safetensors", "model-00001-of-00001.safetensors"])
def test_without_an_index_model_safetensors_is_the_model(tmp_path: Path, variant: str) -> None:
    folder = tiny.save_base(tmp_path / "base")
    (folder / INDEX).unlink()
    expected = logits(folder)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    save(folder / variant, wrong(tensors))
    assert mx.array_equal(logits(folder), expected)
    assert f"{variant} not read: model.safetensors holds the model." in load_base(
        str(folder)
    ).notices[0].replace(f"{folder}: ", "")


def test_shards_without_an_index_are_all_read(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    expected = logits(folder)
    in_two_shards(folder)
    (folder / INDEX).unlink()
    assert mx.array_equal(logits(folder), expected)
    assert not load_weights(folder, "base")[2]


def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_is_read(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    tensors = in_two_shards(folder)
    placed = json.loads((folder / INDEX).read_text())["weight_map"]
    for name, other in ((NORM, "00001"), ("model.embed_tokens.weight", "00002")):
        file = folder / f"model-{other}-of-00002.safetensors"
        assert placed[name] != file.name
        held = mx.load(str(file))
        assert isinstance(held, dict)
        mx.eval(held)
        save(file, held | wrong({name: tensors[name]}))
    model, _, notices = load_weights(folder, "base")
    for name, value in tensors.items():
        assert mx.array_equal(value, weight_of(model, name)), name
    assert "2 tensors are in two files, model.embed_tokens.weight among them" in notices[0]


def test_what_the_index_omits_of_its_files_is_read(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    tensors = in_two_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][NORM]
    (folder / INDEX).write_text(json.dumps(index))
    model, _, notices = load_weights(folder, "base")
    assert mx.array_equal(model.model.norm.weight, tensors[NORM])
    assert not notices
    run = tmp_path / "run"
    adapted(folder, run, ["q_proj"])
    fused(run, tmp_path / "out", verify=True)
    assert mx.allclose(fused_logits(tmp_path / "out"), logits(folder, run), atol=1e-4)


def test_an_index_that_names_a_missing_file_is_an_error(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    in_two_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    missing = r"does not fit its folder:\n  model-00002.* is not there"
    with pytest.raises(OrpoError, match=missing):
        load_base(str(folder))
    save(folder / "model.safetensors", {NORM: mx.ones((64,))})
    with pytest.raises(OrpoError, match=missing + r"\n  If model\.safetensors is the whole model"):
        load_base(str(folder))


def test_a_folder_with_strays_is_converted_and_fused_without_them(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path / "base")
    expected = logits(folder)
    tensors = in_two_shards(folder)
    older_shards(folder, tensors)
    events: list[object] = []
    convert(ConvertConfig(source=str(folder), output=tmp_path / "mlx"), events.append)
    assert mx.array_equal(fused_logits(tmp_path / "mlx"), expected)
    notices = [e.text for e in events if isinstance(e, Notice)]
    assert "model-00001-of-00012.safetensors" in notices[0]
    run = tmp_path / "run"
    adapted(folder, run, ["q_proj"])
    fused(run, tmp_path / "out", verify=True)
    assert mx.allclose(fused_logits(tmp_path / "out"), logits(folder, run), atol=1e-4)
