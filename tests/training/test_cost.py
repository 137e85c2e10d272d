"""Time and memory of the paths, side by side on one random model: ratios, not seconds."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orpo_mlx.data.encoding import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.training.path import ForwardPath, arrays_of, fast_path, plain_path
from tests import tiny

pytestmark = pytest.mark.long
ROUNDS = 15  # each is a tenth off here and there on shared cores


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Twelve blocks of 384, large enough that matmuls and not calls take the time."""
    changes = {
        "hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1024,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192,
    }  # fmt: skip
    found, _ = tiny.build_model("llama", **changes)
    targets = lora.find_targets(found, ["all-linear"], -1)
    lora.attach(found, targets, kind="lora", rank=8, scale=2.0, dropout=0.0, bits={})
    found.train()
    mx.eval(found.parameters())
    return found


def pairs_of(system: int, prompt: int, response: int, count: int) -> list[EncodedPair]:
    random = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return random.integers(1, 8192, length).astype(np.int32)

    shared = ids(system)
    return [
        EncodedPair(np.concatenate([shared, ids(prompt)]), ids(response), ids(response), "")
        for _ in range(count)
    ]


def step_of(path: ForwardPath, pairs: list[EncodedPair]) -> Callable[[], float]:
    """A step that returns its peak memory beyond what was there before, in bytes."""
    model = path.model
    calls, targets, weights, _ = arrays_of(path.batch(pairs, range(len(pairs)), "response"))
    trained = model.trainable_parameters()

    def loss(values: Any) -> mx.array:
        model.update(values)
        return (weights * path.token_logps(calls, targets)).sum()

    def step() -> float:
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        with path.differentiated():
            gradients = mx.grad(loss)(trained)
        model.update(trained)
        mx.eval(gradients)
        return mx.get_peak_memory() - before

    return step


def compare(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """Time and peak memory of the first by those of the second: the median of rounds in which they
    take turns, so that what the machine does meanwhile hits both."""
    memory_ratio = first() / second()
    return median(_seconds(first) / _seconds(second) for _ in range(ROUNDS)), memory_ratio


def _seconds(step: Callable[[], float]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def test_checkpointing_halves_the_memory_at_half_more_time_at_most(model: nn.Module) -> None:
    pairs = pairs_of(0, 100, 300, 1)
    whole, _ = fast_path(model)
    checkpointed, _ = fast_path(model, checkpoint=True)
    time_ratio, memory_ratio = compare(step_of(checkpointed, pairs), step_of(whole, pairs))
    assert memory_ratio <= 0.5
    assert time_ratio <= 1.5


def test_a_shared_system_prompt_is_computed_once(model: nn.Module) -> None:
    pairs = pairs_of(256, 24, 48, 4)
    fast, _ = fast_path(model)
    time_ratio, memory_ratio = compare(step_of(fast, pairs), step_of(plain_path(model), pairs))
    # The tokens are 728 for 2,616, so 0.28; two thirds of that gain must be there.
    assert time_ratio <= 0.45
    assert memory_ratio <= 0.45
