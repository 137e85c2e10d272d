"""A model taken apart into backbone and head."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from orpo_mlx.model import lora
from orpo_mlx.model.backbone import split_model
from orpo_mlx.training.forward_path import fast_path
from tests import tiny

SPLIT = [
    ("llama", {}),  # tied
    ("llama", {"tie_word_embeddings": False}),
    ("gemma2", {"final_logit_softcapping": 3.0}),  # caps
    ("cohere2", {"logit_scale": 0.25}),  # scales
    ("granite", {}),  # divides
    ("minicpm3", {}),  # divides the states by a ratio of widths
    ("gpt_oss", {"tie_word_embeddings": False}),
    ("qwen3_5", {}),  # a model in a model
    ("mamba2", {}),  # no attention, names of its own
]
IDS = mx.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.mark.parametrize(("family", "changes"), SPLIT)
def test_the_head_on_the_backbones_states_is_the_model(family: str, changes: dict) -> None:
    model, _ = tiny.build_model(family, **changes)
    parts = split_model(model)
    assert parts is not None
    hidden = parts.backbone(IDS, cache=make_prompt_cache(model))
    assert hidden.shape == (2, 5, 64)
    logits = parts.head(hidden.reshape(10, 64)).reshape(2, 5, -1)
    np.testing.assert_allclose(logits, model(IDS), rtol=1e-5, atol=1e-5)
    some = parts.head(hidden[1, 2:4])
    np.testing.assert_allclose(some, model(IDS)[1, 2:4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_looking_for_the_parts_leaves_the_model_as_it_was(training: bool) -> None:
    model, _ = tiny.build_model("granite")
    model.train(training)
    before, backbone = model(IDS), model.model
    split_model(model)
    assert model.training is training
    assert model.model is backbone
    assert mx.array_equal(model(IDS), before)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_the_head_follows_what_is_trained_of_it(name: str) -> None:
    model, _ = tiny.build_model("llama", tie_word_embeddings=name != "lm_head")
    targets = lora.find_targets(model, [name], -1)
    lora.attach(model, targets, kind="lora", rank=2, scale=2.0, dropout=0.0, bits={})
    parts = split_model(model)
    assert parts is not None
    before = parts.head(mx.random.normal((3, 64), key=mx.random.key(0)))
    adapted = model.lm_head if name == "lm_head" else model.model.embed_tokens
    adapted.lora_b = mx.random.normal(adapted.lora_b.shape, key=mx.random.key(0))
    after = parts.head(mx.random.normal((3, 64), key=mx.random.key(0)))
    assert mx.abs(after - before).max() > 0.1
    assert mx.allclose(
        parts.head(parts.backbone(IDS, cache=make_prompt_cache(model))[0]), model(IDS)[0], atol=1e-4
    )


def test_a_model_whose_head_needs_more_than_the_states_has_no_parts() -> None:
    """gemma3n mixes four streams on the way to its logits."""
    model, _ = tiny.build_model("gemma3n")
    assert split_model(model) is None
    path, reason = fast_path(model)
    assert path.layout == "padded"
    assert reason == "its head cannot be separated from its backbone"


def test_a_model_without_a_backbone_of_its_own_has_no_parts() -> None:
    class Flat(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.embed_tokens, self.layers = model.model.embed_tokens, model.model.layers

        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            h = self.embed_tokens(ids)
            for layer in self.layers:
                h = layer(h, "causal")
            return self.embed_tokens.as_linear(h)

    assert split_model(Flat(tiny.build_model("llama")[0])) is None
