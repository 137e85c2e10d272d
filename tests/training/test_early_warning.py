"""Runs that learn nothing are warned about after their first steps, once; others are not."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from orpo_mlx.events import Event
from orpo_mlx.training.loop import train
from orpo_mlx.training.metrics.early_warning import EarlySettings, early_warning
from orpo_mlx.training.optim import Optimizer
from tests import tiny
from tests.training.runs import notices, settings, stop_after

pytestmark = pytest.mark.touchy

PAIRS = 240
SAME = "Chosen and rejected responses have the same log-prob"
STILL = "Nothing has moved in the first"
FALLS = "The log-prob of the chosen responses falls with that of the rejected ones"
ALIKE = "Chosen and rejected responses become likelier together"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of pairs: as they are, and with half of the labels swapped at random."""
    folder = tmp_path_factory.mktemp("toys")
    tiny.save_pairs(folder / "right.jsonl", PAIRS)
    rng = random.Random(0)
    with (folder / "shuffled.jsonl").open("w") as file:
        for number in range(PAIRS):
            pair = tiny.toy_pair(number)
            if rng.random() < 0.5:
                pair |= {"chosen": pair["rejected"], "rejected": pair["chosen"]}
            file.write(json.dumps(pair) + "\n")
    return folder


@pytest.fixture
def warnings_of(llama: Path, toys: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The warnings of an epoch with the default settings but for what is given, up to step 20."""

    def run(labels: str = "right", **changes: Any) -> list[str]:
        usual: dict[str, Any] = {
            "batch_size": 4,
            "micro_batch_size": 4,
            "steps": 30,
            "learning_rate": 5e-5,
            "warmup": 0.1,
            "rank": 16,
            "alpha": 32.0,
        }
        config = settings(llama, toys / f"{labels}.jsonl", tmp_path / "run", **usual | changes)
        events: list[Event] = []
        train(config, [events.append, stop_after(20)])
        return notices(events, warning=True)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-5},
        {},
        {"learning_rate": 2e-4},
        {"learning_rate": 1e-3, "beta": 0},
    ],
)
def test_a_run_that_learns_is_not_warned_about(
    warnings_of: Callable[..., list[str]], changes: dict[str, Any]
) -> None:
    assert warnings_of(**changes) == []


def test_shuffled_labels_raise_both_responses_alike(warnings_of: Callable[..., list[str]]) -> None:
    (warning,) = warnings_of("shuffled", learning_rate=1e-3)
    assert warning.startswith(ALIKE)
    assert "orpo-mlx data check" in warning
    assert warning.endswith("or try a higher --beta (now 0.1).")


def test_a_rate_that_breaks_the_model_is_warned_about_once(
    warnings_of: Callable[..., list[str]],
) -> None:
    wild = {"learning_rate": 1e6, "steps": 21}
    (warning,) = warnings_of(**wild)
    # Every token of tiny.VOCABULARY is as likely.
    assert warning.startswith(f"{SAME}, {-np.log(tiny.VOCABULARY):.3f} a token")
    assert warning.endswith("lower --learning-rate (now 1e+06).")
    assert warnings_of(**wild, resume=True) == []


@pytest.mark.parametrize("rate", [0.0, 1e-8])
def test_a_rate_that_moves_nothing(
    warnings_of: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr("orpo_mlx.training.step.learning_rate_at", lambda *_, **__: rate)
    (warning,) = warnings_of(steps=2)
    assert warning.startswith(f"{STILL} 2 steps: the learning rate was {rate:g} at most.")
    assert warning.endswith("higher --learning-rate (now 5e-05) or a shorter --warmup.")


@pytest.mark.parametrize("kind", ["adafactor", "lion"])
def test_each_optimizer_moves_by_the_rate_and_no_further(
    warnings_of: Callable[..., list[str]], kind: str
) -> None:
    assert warnings_of(optimizer=kind, learning_rate=1e-4) == []
    (warning,) = warnings_of(optimizer=kind, learning_rate=1e-9, overwrite=True)
    assert warning.startswith(f"{STILL} 20 steps: the learning rate was 1e-09 at most.")


def test_a_gradient_that_is_zero(
    warnings_of: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Optimizer.update

    def without(self: Optimizer, gradient: Any, rate: float) -> float:
        return update(self, tree_map(mx.zeros_like, gradient), rate)

    monkeypatch.setattr(Optimizer, "update", without)
    (warning,) = warnings_of(steps=2)
    assert warning.startswith(f"{STILL} 2 steps: the norm of the gradient is 0.")
    assert "--target-modules" in warning


def test_a_scale_without_effect_has_no_gradient(warnings_of: Callable[..., list[str]]) -> None:
    (warning,) = warnings_of(alpha=1e-12, steps=2)
    assert warning.startswith(f"{STILL} 2 steps: the norm of the gradient is")


# By the numbers alone


def rows_of(
    chosen: Sequence[float], rejected: Sequence[float], **more: float
) -> list[dict[str, float]]:
    usual = {"learning_rate": 1e-4, "grad_norm": 1.0, "loss": 2.0}
    names = "logps/chosen", "logps/rejected"
    return [
        usual | dict(zip(names, pair, strict=True)) | more
        for pair in zip(chosen, rejected, strict=True)
    ]


SETTINGS = EarlySettings(learning_rate=1e-4, beta=0.1, parameters=1000)


def test_steps_of_sft_rows_alone_are_judged_by_loss_and_gradient() -> None:
    sft = [{"learning_rate": 1e-4, "grad_norm": 1.0, "loss": 2.0, "nll_loss/sft": 2.0}] * 20
    assert early_warning(sft, SETTINGS) == ""
    rising = [row | {"loss": 2.0 + n} for n, row in enumerate(sft)]
    assert early_warning(rising, SETTINGS).startswith("The loss rose")
    still = [row | {"grad_norm": 0.0} for row in sft]
    assert early_warning(still, SETTINGS).startswith(STILL)
    falling = rows_of([-1.0 - n / 10 for n in range(20)], [-2.0 - n / 10 for n in range(20)])
    mixed = [row for pair in zip(falling, sft, strict=True) for row in pair]
    assert early_warning(mixed, SETTINGS).startswith(FALLS)


def warning_of(chosen: Sequence[float], rejected: Sequence[float], beta: float = 0.1) -> str:
    return early_warning(rows_of(chosen, rejected), EarlySettings(1e-4, beta, 1_000_000))


FLAT, UP, DOWN, STEEP = (np.full(20, -2.0), *(-2 + k * np.arange(20) / 20 for k in (0.8, -0.6, -2)))


@pytest.mark.parametrize(
    ("chosen", "rejected", "wanted"),
    [
        (DOWN, STEEP, FALLS),
        (STEEP, STEEP, SAME),
        (STEEP, STEEP - 1, FALLS),
        (DOWN, UP, ""),  # preferences the wrong way round; the loss rises
        (UP, UP + 0.3, ALIKE),
        (UP, UP - 0.3, ALIKE),  # preferred before, and no more than before
        (UP, FLAT, ""),
        (UP, DOWN, ""),
        (FLAT, DOWN, ""),
        (FLAT, FLAT + 0.1, ""),
        (-2 + (UP + 2) / 8, -2.1 + (UP + 2) / 8, ""),  # a few percent, as of a first adaptation
    ],
)
def test_what_moves_with_what(chosen: np.ndarray, rejected: np.ndarray, wanted: str) -> None:
    noise = np.random.default_rng(0).normal(size=20) / 50
    text = warning_of(chosen + noise, rejected + noise)
    assert text.startswith(wanted) if wanted else not text


def test_chosen_that_falls_is_reported_with_the_reason_of_the_paper() -> None:
    text = warning_of(DOWN, STEEP, beta=1.0)
    assert "from -2.135 to -2.435 over the first 20 steps" in text
    assert "(arXiv 2403.07691, appendix E)" in text
    assert text.endswith("Try a lower --beta (now 1) or a lower --learning-rate (now 0.0001).")
    assert not warning_of(DOWN, STEEP, beta=0)
    assert not warning_of(DOWN[:7], STEEP[:7])  # too few steps to say


def test_a_gradient_that_vanishes_is_reported_though_log_probs_differ() -> None:
    rows = rows_of(FLAT, FLAT - 0.3)  # norms after each layer keep answers apart (Gemma 3)
    for row in rows[5:]:
        row["grad_norm"] = 0.0
    text = early_warning(rows, EarlySettings(1e6, 0.1, 1_000_000))
    assert text.startswith("The norm of the gradient fell from 1 to 0 over the first 20 steps:")
    assert text.endswith("Start again with a lower --learning-rate (now 1e+06).")
    rows[-1]["grad_norm"] = 1e-3
    assert not early_warning(rows, EarlySettings(1e6, 0.1, 1_000_000))


def test_noise_does_not_count() -> None:
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(400):
        both = rng.normal(size=20) * 0.5  # pairs of a step are easy or hard for both responses
        chosen, rejected = (-2 + both + 0.2 * rng.normal(size=20) for _ in range(2))
        texts.append(warning_of(chosen, rejected))
    assert sum(map(bool, texts)) < 8  # one in fifty


# The first twenty steps of the demo: log-probs of chosen and rejected.
DEMO = (
    (-3.87, -3.49),
    (-4.26, -3.55),
    (-3.89, -3.56),
    (-3.63, -4.00),
    (-3.63, -3.64),
    (-3.44, -3.64),
    (-3.88, -3.48),
    (-3.66, -3.30),
    (-3.59, -4.01),
    (-3.38, -4.05),
    (-3.27, -4.05),
    (-3.45, -3.92),
    (-3.21, -3.99),
    (-3.65, -3.96),
    (-2.48, -4.00),
    (-3.92, -4.12),
    (-3.33, -4.18),
    (-3.41, -4.05),
    (-3.29, -4.26),
    (-3.23, -3.70),
)


def test_the_demo_is_not_warned_about() -> None:
    chosen, rejected = zip(*DEMO, strict=True)
    assert not early_warning(
        rows_of(chosen, rejected, learning_rate=2e-3), EarlySettings(2e-3, 0.5, 2_442_240)
    )
