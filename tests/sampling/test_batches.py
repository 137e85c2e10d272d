"""Answers drawn many at once and one by one, against whole forward passes token by token."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.errors import OrpoError
from orpo_mlx.model.base import Base, load_base
from orpo_mlx.sampling import batches
from orpo_mlx.sampling.batches import Draw, Drawing, Drawn, draw_in_batches, draw_one_by_one
from orpo_mlx.sampling.cut import let_go_on
from orpo_mlx.sampling.keys import token_key
from tests.sampling.talkers import save_talker

pytestmark = [pytest.mark.touchy, pytest.mark.usefixtures("eager")]
LIMIT, TEMPERATURE = 12, 0.8
PROMPTS = [[5, 9, 300, 301], [7], [*range(300, 340)]]
# float32: the same sums of 64 terms in another order; a near tie of two tokens would flip an answer
ATOL = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_talker(tmp_path_factory.mktemp("talker") / "base", ends=0.5)))


def how_of(base: Base, size: int, temperature: float = TEMPERATURE, limit: int = LIMIT) -> Drawing:
    return Drawing(base.model, base.tokenizer, temperature, limit, size)


def draws_of(prompts: Sequence[list[int]], answers: int = 4) -> list[Draw]:
    return [Draw(ids, 100 * n + k) for n, ids in enumerate(prompts) for k in range(answers)]


def in_order(drawn: Iterator[tuple[int, Drawn]]) -> list[Drawn]:
    by_index = dict(drawn)
    return [by_index[index] for index in range(len(by_index))]


def reference(model: nn.Module, draw: Draw, ends: set[int], temperature: float) -> Drawn:
    """By a whole forward pass for each token, and log-probs in float64."""
    ids, logps = list[int](), list[float]()
    while len(ids) < LIMIT and not (ids and ids[-1] in ends):
        logits = model(mx.array([draw.ids + ids]))[:, -1]
        exact = np.array(logits[0], np.float64)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        key = token_key(draw.seed, len(ids))
        likeliest = mx.argmax(logprobs, axis=-1)
        drawn = (
            mx.random.categorical(logprobs * (1 / temperature), key=key)
            if temperature
            else likeliest
        )
        ids.append(int(drawn.item()))
        logps.append(exact[ids[-1]] - np.logaddexp.reduce(exact))
    return Drawn(ids, logps, ids[-1] in ends)


def assert_same(drawn: Sequence[Drawn], expected: Sequence[Drawn]) -> None:
    assert [(one.ids, one.ended) for one in drawn] == [(one.ids, one.ended) for one in expected]
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(one.logps, other.logps, rtol=0, atol=ATOL)


@pytest.mark.parametrize("temperature", [TEMPERATURE, 0.0])
def test_an_answer_is_the_same_alone_and_in_any_batch(base: Base, temperature: float) -> None:
    ends, draws = set(base.tokenizer.eos_token_ids), draws_of(PROMPTS)
    expected = [reference(base.model, draw, ends, temperature) for draw in draws]
    if temperature:
        assert {one.ended for one in expected} == {True, False}
        assert len({tuple(one.ids) for one in expected[:4]}) > 1
    for size in (3, 32):
        how = how_of(base, size, temperature)
        assert_same(in_order(draw_in_batches(how, draws)), expected)
    assert_same(in_order(draw_one_by_one(how_of(base, 1, temperature), draws)), expected)
    others = in_order(draw_in_batches(how_of(base, 4, temperature), draws[5:7]))
    assert_same(others, expected[5:7])


@pytest.mark.parametrize("draw", [draw_in_batches, draw_one_by_one])
def test_a_prompt_is_filled_once_for_all_its_answers(
    base: Base, draw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = list[int]()
    fill = batches.fill_cache

    def counted(model: nn.Module, ids: list[int]) -> list[Any]:
        filled.append(len(ids))
        return fill(model, ids)

    monkeypatch.setattr(batches, "fill_cache", counted)
    in_order(draw(how_of(base, 3), draws_of(PROMPTS)))
    assert filled == [4, 1, 40]


def test_a_long_prompt_is_filled_in_parts(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = draws_of(PROMPTS[2:])
    whole = in_order(draw_in_batches(how_of(base, 4), draws))
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 7)
    assert_same(in_order(draw_in_batches(how_of(base, 4), draws)), whole)


@pytest.mark.parametrize("draw", [draw_in_batches, draw_one_by_one])
def test_cut_answers_go_on_as_if_the_limit_had_been_higher(
    base: Base, draw: Callable[..., Any]
) -> None:
    draws = draws_of(PROMPTS)
    short = in_order(draw(how_of(base, 32, limit=4), draws))
    long = in_order(draw(how_of(base, 32, limit=8), draws))
    cut = [n for n, one in enumerate(short) if not one.ended]
    going_on = [Draw(draws[n].ids + short[n].ids, draws[n].seed, 4) for n in cut]
    gone_on = let_go_on(how_of(base, 32, limit=4), draw, going_on, lambda event: None)
    count = 8 if draw is draw_in_batches else 2
    assert gone_on.answers == count < len(cut)
    assert gone_on.lengths == sorted(len(long[n].ids) for n in cut[:count] if long[n].ended)
    assert gone_on.lengths


@pytest.mark.parametrize("draw", [draw_in_batches, draw_one_by_one])
def test_a_model_that_gives_nan_is_an_error_with_its_reason(
    base: Base, draw: Callable[..., Any]
) -> None:
    norm = base.model.model.norm
    kept = norm.weight
    norm.weight = kept * mx.nan
    try:
        with pytest.raises(OrpoError, match=r"NaN or infinite numbers .* weight model.norm.weight"):
            in_order(draw(how_of(base, 4), draws_of(PROMPTS)))
    finally:
        norm.weight = kept


def test_a_model_that_trains_keeps_its_mode(base: Base) -> None:
    base.model.train()
    in_order(draw_in_batches(how_of(base, 4), draws_of(PROMPTS[:1])))
    assert base.model.training
    base.model.eval()


def test_log_probs_of_half_precision_are_float32(tmp_path: Path) -> None:
    base = load_base(str(save_talker(tmp_path / "base")))
    base.model.set_dtype(mx.bfloat16)
    drawn = in_order(draw_in_batches(how_of(base, 4), draws_of(PROMPTS)))
    logps = mx.array([logp for one in drawn for logp in one.logps])
    coarse = logps.astype(mx.bfloat16).astype(mx.float32)
    assert (coarse != logps).sum().item() > logps.size // 2
