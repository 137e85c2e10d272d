"""Which tensors of a folder count: as transformers reads the same folder."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.interop.convert.to_mlx import convert
from orpo_mlx.model.base import load_weights
from tests import tiny
from tests.interop.adapted import adapted, fused, logits
from tests.model.fp8_folders import save_fp8
from tests.model.test_heads import save_with_head
from tests.model.test_scaled_weights import blocks
from tests.model.test_stray_files import NORM, in_two_shards, older_shards, save, wrong
from tests.parity.test_fuse import theirs

pytestmark = [pytest.mark.parity, pytest.mark.touchy]
SAME = 1e-4  # float32 of some hundred additions


def untouched(folder: Path) -> None:
    pass


def strays_next_to_an_index(folder: Path) -> None:
    older_shards(folder, in_two_shards(folder))


def an_index_that_omits_a_tensor(folder: Path) -> None:
    in_two_shards(folder)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"][NORM]
    file.write_text(json.dumps(index))


def a_variant_without_an_index(folder: Path) -> None:
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    (folder / "model.safetensors.index.json").unlink()
    save(folder / "model.fp16.safetensors", wrong(tensors))


@pytest.mark.parametrize(
    "change",
    [untouched, strays_next_to_an_index, an_index_that_omits_a_tensor, a_variant_without_an_index],
)
def test_a_folder_is_read_as_transformers_reads_it(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = tiny.save_base(tmp_path / "base", tie_word_embeddings=True)
    change(folder)
    np.testing.assert_allclose(theirs(folder), np.array(logits(folder)), atol=SAME, rtol=0)


@pytest.mark.parametrize("family", ["llama", "granite", "qwen2"])
@pytest.mark.parametrize("own", [0.0, 0.5])
def test_a_stored_head_means_the_same_before_and_after(
    tmp_path: Path, family: str, own: float
) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    save_with_head(base, family, own=own)
    np.testing.assert_allclose(theirs(base), np.array(logits(base)), atol=SAME, rtol=0)
    adapted(base, run, ["embed_tokens", "q_proj", *(["lm_head"] if own else [])])
    fused(run, out, verify=False)
    np.testing.assert_allclose(theirs(out), np.array(logits(base, run)), atol=SAME, rtol=0)
    convert(ConvertConfig(source=str(base), output=tmp_path / "mlx"), lambda event: None)
    np.testing.assert_allclose(theirs(tmp_path / "mlx"), theirs(base), atol=SAME, rtol=0)


def test_fp8_means_what_transformers_decodes(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    save_fp8(tmp_path / "base", "qwen3", **blocks(16, 32))
    setting = FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 32))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=setting, dtype=torch.float32
    )
    decoded = {name: value.float().numpy() for name, value in model.state_dict().items()}
    for name, value in tree_flatten(load_weights(tmp_path / "base", "base")[0].parameters()):
        np.testing.assert_allclose(np.array(value), decoded[name], rtol=3e-7, err_msg=name)
