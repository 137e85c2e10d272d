"""Folders that transformers saved, converted: plain mlx-lm computes transformers' logits."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.interop.convert.to_mlx import convert
from tests import tiny
from tests.parity.test_rope import in_every_case, saved_by_transformers

pytestmark = [pytest.mark.parity, pytest.mark.touchy]

IDS = np.random.default_rng(0).integers(3, tiny.VOCABULARY, (2, 40))


@in_every_case
def test_mlx_lm_alone_reads_a_converted_folder_right(
    tmp_path: Path, family: str, changes: dict[str, Any], tolerance: float
) -> None:
    import torch

    theirs = saved_by_transformers(tmp_path / "base", family, changes)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    convert(ConvertConfig(source=tmp_path / "base", output=tmp_path / "out"), lambda _: None)
    ours, _ = mlx_lm.load(str(tmp_path / "out"))
    np.testing.assert_allclose(np.array(ours(mx.array(IDS))), expected, atol=tolerance, rtol=0)


def test_without_the_settings_mlx_lm_computes_otherwise(tmp_path: Path) -> None:
    """The fault that the others guard against."""
    import torch

    theirs = saved_by_transformers(tmp_path / "base", "llama", {})
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    assert "rope_theta" not in json.loads((tmp_path / "base" / "config.json").read_text())
    ours, _ = mlx_lm.load(str(tmp_path / "base"))
    assert np.abs(np.array(ours(mx.array(IDS))) - expected).max() > 0.1


def test_training_on_such_a_folder_reads_the_settings(tmp_path: Path) -> None:
    """`train` reports it, and its base is transformers' own: the guard of the model's loader."""
    import torch

    from orpo_mlx.config.train import TrainConfig
    from orpo_mlx.events import Event, Notice
    from orpo_mlx.model.base import load_base
    from orpo_mlx.training.loop import train

    theirs = saved_by_transformers(tmp_path / "base", "llama", {})
    pairs = tiny.save_pairs(tmp_path / "pairs.jsonl", 8)
    events: list[Event] = []
    config = TrainConfig(
        model=tmp_path / "base", data=[str(pairs)], output=tmp_path / "run", steps=1, batch_size=4
    )
    train(config, [events.append])
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert any("rope_theta" in text and "transformers 5" in text for text in texts)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    ours = load_base(str(tmp_path / "base"), keep_quantized=False).model(mx.array(IDS))
    np.testing.assert_allclose(np.array(ours), expected, atol=3e-5, rtol=0)
