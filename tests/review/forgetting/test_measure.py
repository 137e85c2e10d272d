"""What was forgotten, against a float64 twin, scipy, and drawn paragraphs."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from scipy.stats import ttest_rel

from orpo_mlx.config.groups import BaseOptions
from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Progress
from orpo_mlx.review.forgetting import measure
from orpo_mlx.review.forgetting.measure import Forgotten, Losses, compare_losses, measure_losses
from tests.review.forgetting.adapters import PARAGRAPHS, save_two
from tests.twin import in_float64


def measured(
    base: Path, adapters: Sequence[Path | None], paragraphs: Sequence[str] = PARAGRAPHS
) -> list[Losses]:
    options = BaseOptions(model=str(base))
    return measure_losses(options, adapters, paragraphs, lambda event: None)


def expected_nats(
    base: Path, adapter: Path | None, paragraphs: Sequence[str], window: int
) -> np.ndarray:
    """The sums of -log p, as mlx-lm loads both, computed in float64."""
    model, tokenizer = mlx_lm.load(str(base), adapter_path=str(adapter) if adapter else None)[:2]
    nats = []
    for paragraph in paragraphs:
        ids = tokenizer.encode(paragraph)
        nats.append(0.0)
        for start in range(0, len(ids) - 1, window):
            own = ids[start : start + window + 1]
            with in_float64(model):
                logits = np.array(model(mx.array([own[:-1]]))[0], np.float64)
            log_sums = np.log(np.exp(logits).sum(-1))
            nats[-1] += (log_sums - logits[np.arange(len(own) - 1), own[1:]]).sum()
    return np.array(nats)


@pytest.mark.touchy
@pytest.mark.parametrize("window", [512, 5])
def test_losses_are_those_of_a_float64_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(measure, "WINDOW", window)
    base, adapter = save_two(tmp_path, 0.3)
    for losses, folder in zip(measured(base, [None, adapter]), [None, adapter], strict=True):
        expected = expected_nats(base, folder, PARAGRAPHS, window)
        # float32: logits of two layers and their sum over some 300 words
        np.testing.assert_allclose(losses.nats, expected, rtol=1e-5)
        assert losses.per_token == pytest.approx(expected.sum() / losses.tokens.sum(), rel=1e-5)


@pytest.mark.touchy
def test_the_same_model_twice_has_forgotten_nothing(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 0.0)
    plain, again, unchanged = measured(base, [None, None, adapter])
    for other in (again, unchanged):
        forgotten = compare_losses(plain, other)
        # float32 sums, should they be in another order
        numbers = forgotten.change, forgotten.low, forgotten.high
        assert numbers == pytest.approx((0, 0, 0), abs=1e-6)
        assert not forgotten.is_large


def test_a_planted_damage_is_warned_of(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    forgotten = compare_losses(*measured(base, [None, adapter]))
    assert forgotten.is_large
    assert 0.05 < forgotten.low < forgotten.change < forgotten.high
    assert forgotten.paragraphs == len(PARAGRAPHS)


@pytest.mark.parametrize(("low", "is_large"), [(0.0501, True), (0.05, False), (-0.1, False)])
def test_it_is_the_lower_end_that_warns(low: float, is_large: bool) -> None:
    assert Forgotten(60, 4000, 2.0, 3.0, low, 1.5).is_large == is_large


def test_paragraphs_of_one_length_have_the_interval_of_a_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    base, change = draw.normal(60, 9, size=12), draw.normal(2, 1, size=12)
    tokens = np.full(12, 20)
    forgotten = compare_losses(Losses(base, tokens), Losses(base + change, tokens))
    interval = ttest_rel((base + change) / 20, base / 20).confidence_interval(0.95)
    assert (forgotten.low, forgotten.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_the_interval_holds_the_true_change_in_95_of_100_texts() -> None:
    draw = np.random.default_rng(1)
    texts, inside = 1_000, 0
    for _ in range(texts):
        tokens = draw.integers(20, 120, size=60)
        # what a token loses differs by paragraph, and is 0.1 nats a token on average
        change = tokens * draw.normal(0.1, 0.05, size=60) + np.sqrt(tokens) * draw.normal(size=60)
        forgotten = compare_losses(
            Losses(tokens * 2.0, tokens), Losses(tokens * 2.0 + change, tokens)
        )
        inside += forgotten.low <= 0.1 <= forgotten.high
    # 0.69 points of standard error, and a ratio's interval is right only in the limit
    assert abs(inside / texts - 0.95) <= 0.025


@pytest.mark.touchy
def test_the_base_is_itself_again_after_an_adapter(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 1.0)
    before, _, after = measured(base, [None, adapter, None])
    np.testing.assert_allclose(before.nats, after.nats, rtol=1e-6)  # float32


def test_progress_counts_paragraphs_of_all_models(tmp_path: Path) -> None:
    base, adapter = save_two(tmp_path, 0.0)
    events = list[Event]()
    measure_losses(BaseOptions(model=str(base)), [None, adapter], PARAGRAPHS, events.append)
    done = [(e.done, e.total) for e in events if isinstance(e, Progress)]
    assert done == [(n, 8) for n in range(1, 9)]


def test_a_paragraph_of_one_token_is_refused(tmp_path: Path) -> None:
    base, _ = save_two(tmp_path, 0.0)
    with pytest.raises(OrpoError, match="one token, and nothing to predict:\n.*x\n.*y"):
        measured(base, [None], ["x", *PARAGRAPHS, "y"])
