"""Which tensors of a folder count: as transformers reads the same folder."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests import tiny
from tests.interop.adapted import logits
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
