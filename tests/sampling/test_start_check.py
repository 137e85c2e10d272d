"""Whether a model may be sampled in batches, against answers by mlx-lm alone."""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from orpo_mlx.doctor.toys import random_model
from orpo_mlx.errors import OrpoError
from orpo_mlx.model.mlx_lm_api import stream_generate
from orpo_mlx.sampling.batches import Draw, Drawing, draw_in_batches, draw_one_by_one
from orpo_mlx.sampling.start_check import why_not_in_batches
from tests import tiny
from tests.families import COMMON, FAST, REACH

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]
LLAMA4 = COMMON | {
    "model_type": "llama4_text", "num_hidden_layers": 4, "attention_bias": False,
    "attention_chunk_size": 24, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 96,
    "num_experts_per_tok": 1, "num_local_experts": 4, "rope_scaling": None, "use_qk_norm": True,
    "attn_temperature_tuning": False,
}  # fmt: skip
PROMPTS = [np.random.default_rng(0).integers(5, 300, n).tolist() for n in (33, 7, 20)]
TOKENS = 6


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return TokenizerWrapper(tiny.build_tokenizer())


def model_of(family: str) -> nn.Module:
    if family == "llama4":
        return random_model({"model_type": "llama4", "text_config": LLAMA4}, 0)
    return tiny.build_model(family, **REACH.get(family, {}))[0]


def assert_drawn_as_by_mlx_lm(model: nn.Module, tokenizer: Any, draw: Any) -> None:
    how = Drawing(model, tokenizer, 0.0, TOKENS, 4)
    draws = [Draw(ids, 0) for ids in PROMPTS for _ in range(2)]
    for index, drawn in draw(how, draws):
        prompt = draws[index].ids
        parts = list(stream_generate(model, tokenizer, prompt, max_tokens=TOKENS))[:TOKENS]
        assert drawn.ids == [part.token for part in parts]
        logps = [part.logprobs[part.token].item() for part in parts]
        # float32: sums of up to 96 terms in another order, through 3 to 5 layers
        np.testing.assert_allclose(drawn.logps, logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("llama", ""),
        ("mamba2", ""),
        ("gemma2", "ValueError: .* cannot be broadcast"),
        ("llama4", "ValueError: .*ChunkedKVCache.* does not yet support batching"),
    ],
)
def test_a_family_goes_in_batches_if_they_are_exact_and_else_one_by_one(
    tokenizer: Any, family: str, why: str
) -> None:
    model = model_of(family)
    reason = why_not_in_batches(model, tokenizer, PROMPTS)
    assert bool(reason) == bool(why)
    assert re.match(why, reason)
    assert_drawn_as_by_mlx_lm(model, tokenizer, draw_one_by_one if reason else draw_in_batches)


@pytest.mark.soak
@pytest.mark.parametrize("family", FAST)
def test_every_fast_family_is_drawn_as_by_mlx_lm(tokenizer: Any, family: str) -> None:
    model = model_of(family)
    reason = why_not_in_batches(model, tokenizer, PROMPTS)
    assert bool(reason) == (family == "gemma2"), reason
    assert_drawn_as_by_mlx_lm(model, tokenizer, draw_one_by_one if reason else draw_in_batches)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[5], [6]]])
def test_a_mask_that_shows_the_padding_is_seen(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, prompts: list[list[int]]
) -> None:
    model = tiny.build_model("llama")[0]
    assert why_not_in_batches(model, tokenizer, prompts) == ""
    whole = BatchKVCache.make_mask

    def shows_padding(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept, self.left_padding = self.left_padding, mx.zeros_like(self.left_padding)
        mask = whole(self, *args, **kwargs)
        self.left_padding = kept
        return mask

    monkeypatch.setattr(BatchKVCache, "make_mask", shows_padding)
    assert "log-probs differ by" in why_not_in_batches(model, tokenizer, prompts)


def test_a_wrong_position_is_seen_in_half_precision_and_rounding_is_not(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    model = tiny.build_model("llama")[0]
    model.model.norm.weight = model.model.norm.weight * 8  # logits as far apart as trained ones
    model.set_dtype(mx.bfloat16)
    assert why_not_in_batches(model, tokenizer, PROMPTS) == ""
    monkeypatch.setattr(BatchKVCache, "make_mask", lambda self, n, **kwargs: None)
    assert "log-probs differ by" in why_not_in_batches(model, tokenizer, PROMPTS)


def test_a_model_that_gives_nan_is_an_error(tokenizer: Any) -> None:
    model = tiny.build_model("llama")[0]
    model.model.norm.weight = model.model.norm.weight * mx.nan
    with pytest.raises(OrpoError, match="NaN or infinite numbers"):
        why_not_in_batches(model, tokenizer, PROMPTS)
