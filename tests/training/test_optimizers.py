"""Adafactor, Lion and AdamW against their formulas in float64; what decays, and old runs' decay."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten, tree_unflatten

from orpo_mlx.run_folder.folder import CONFIG
from orpo_mlx.training import loop
from orpo_mlx.training.loop import train
from orpo_mlx.training.optim import Optimizer, decays, learning_rate_at
from tests.training.runs import rows, settings, stop_after, tensors

RATE, DECAY, CLIP = 0.01, 0.1, 1.0
# A matrix, experts, a convolution's kernel, and what is spared: two biases and two norms.
SHAPES = {
    "proj.weight": (6, 4),
    "experts.weight": (3, 5, 4),
    "conv.weight": (4, 3, 1),
    "experts.bias": (3, 5),
    "proj.bias": (6,),
    "q_norm.weight": (2, 4),
    "scale": (4,),
}
DECAYING = {"proj.weight", "experts.weight", "conv.weight"}
Arrays = dict[str, Any]


class Model(nn.Module):
    def __init__(self, start: Arrays):
        super().__init__()
        tree: Any = tree_unflatten([(name, mx.array(value)) for name, value in start.items()])
        for name, value in tree.items():
            setattr(self, name, value)


def random_arrays(seed: int, size: float = 1.0) -> Arrays:
    random = np.random.default_rng(seed)
    return {n: (random.normal(size=s) * size).astype(np.float32) for n, s in SHAPES.items()}


def updated(kind: str, start: Arrays, gradients: list[Arrays], **how: Any) -> Arrays:
    """The weights after a step for each gradient."""
    model = Model(start)
    given = {"weight_decay": DECAY, "max_grad_norm": CLIP} | how
    optimizer = Optimizer(model, kind=kind, **given)
    for gradient in gradients:
        flat = [(n, mx.array(g)) for n, g in gradient.items()]
        optimizer.update(tree_unflatten(flat), RATE)
    return {n: np.array(w) for n, w in tree_flatten(model.trainable_parameters())}


def adamw(g: Any, state: Arrays, step: int) -> Any:
    """Loshchilov and Hutter 2019, algorithm 2."""
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    mean, square = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return mean / (np.sqrt(square) + 1e-8)


def lion(g: Any, state: Arrays, step: int) -> Any:
    """Chen et al. 2023, algorithm 2."""
    before = state.get("m", 0.0)
    state["m"] = 0.99 * before + 0.01 * g
    return np.sign(0.9 * before + 0.1 * g)


def adafactor(g: Any, state: Arrays, step: int) -> Any:
    """Shazeer and Stern 2018, algorithms 4 and 5 (d = 1, beta2 = 1 - t^-0.8), at a given rate."""
    beta, square = 1 - step**-0.8, g**2 + 1e-30
    if g.ndim < 2:
        state["v"] = beta * state.get("v", 0.0) + (1 - beta) * square
        root = np.sqrt(state["v"])
    else:
        state["r"] = beta * state.get("r", 0.0) + (1 - beta) * square.mean(-1, keepdims=True)
        state["c"] = beta * state.get("c", 0.0) + (1 - beta) * square.mean(-2, keepdims=True)
        root = np.sqrt(state["r"] * state["c"] / state["r"].mean(-2, keepdims=True))
    update = g / root
    return update / max(1.0, np.sqrt((update**2).mean()))


RULES = {"adamw": adamw, "adafactor": adafactor, "lion": lion}


def reference(kind: str, start: Arrays, gradients: list[Arrays], decay: float, clip: float) -> Any:
    """The same steps in float64."""
    weights = {n: w.astype(np.float64) for n, w in start.items()}
    states: dict[str, Arrays] = {n: {} for n in SHAPES}
    for step, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for n, g in gradient.items():
            weights[n] = weights[n] * (1 - RATE * decay * (n in DECAYING))
            weights[n] -= RATE * RULES[kind](g.astype(np.float64) * factor, states[n], step)
    return weights


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("clip", [0.0, CLIP])
@pytest.mark.parametrize("steps", [1, 3])
def test_updates_equal_float64(kind: str, decay: float, clip: float, steps: int) -> None:
    start = random_arrays(0)
    # Of these sizes the last two are clipped.
    gradients = [random_arrays(1 + i, size) for i, size in enumerate((0.01, 3.0, 1.0)[:steps])]
    got = updated(kind, start, gradients, weight_decay=decay, max_grad_norm=clip)
    expected = reference(kind, start, gradients, decay, clip)
    for name in SHAPES:
        # A weight of up to 4 is rounded by 2.4e-7 at each of its two products in a step.
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=steps * 4.8e-7)
        # The move itself, of RATE a step: float32's bias corrections lose three digits.
        moved, should = got[name] - start[name], expected[name] - start[name]
        np.testing.assert_allclose(moved, should, rtol=0, atol=steps * 1e-4 * RATE)


@pytest.mark.parametrize("kind", RULES)
def test_decay_shrinks_matrices_and_spares_norms_and_biases(kind: str) -> None:
    start, gradient = random_arrays(0), random_arrays(1)
    with_decay, without = (
        updated(kind, start, [gradient], weight_decay=decay) for decay in (DECAY, 0.0)
    )
    changed = {n for n in SHAPES if not np.array_equal(with_decay[n], without[n])}
    assert changed == DECAYING
    everywhere = updated(kind, start, [gradient], decay_all=True)
    assert {n for n in SHAPES if not np.array_equal(everywhere[n], without[n])} == set(SHAPES)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.lora_a", (8, 4), True),
        ("model.layers.0.self_attn.q_proj.lora_b", (4, 8), True),
        ("model.layers.0.self_attn.q_proj.m", (8,), False),  # DoRA's magnitudes
        ("model.embed_tokens.weight", (9, 4), True),
        ("model.norm.weight", (4,), False),
        ("model.layers.0.input_layernorm.weight", (1, 4), False),
        ("model.layers.0.mixer.norm.weight", (2, 4), False),
        ("model.layers.0.normalizer.weight", (2, 4), True),
        ("model.layers.0.mixer.A_log", (8,), False),
    ],
)
def test_what_decays_follows_from_name_and_shape(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert decays(name, mx.zeros(shape)) == expected


@pytest.mark.parity
def test_names_are_spared_as_transformers_spares_them() -> None:
    import torch
    from transformers import Trainer

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(4, 4)
            self.normalizer = torch.nn.Linear(4, 4, bias=False)
            for name in ("norm", "k_norm", "input_layernorm", "RMSNorm", "dt_bias"):
                setattr(self, name, torch.nn.Linear(4, 4, bias=False))

    block = Block()
    theirs = Trainer.get_decay_parameter_names(Trainer.__new__(Trainer), block)
    names = {n for n, p in block.named_parameters() if decays(n, mx.zeros(tuple(p.shape)))}
    assert names == set(theirs) == {"proj.weight", "normalizer.weight"}


@pytest.mark.parametrize(("kind", "numbers"), [("adamw", 2.0), ("lion", 1.0), ("adafactor", 0.03)])
def test_moments_take_the_memory_that_the_documents_state(kind: str, numbers: float) -> None:
    """Float32 numbers a weight: two moments, one, and a row and a column."""
    model = Model({"proj.weight": np.zeros((64, 64), np.float32)})
    optimizer = Optimizer(model, kind=kind, weight_decay=0.0, max_grad_norm=0.0)
    moments = [v.size for n, v in optimizer.state()[1].items() if n.startswith("proj.")]
    assert sum(moments) / 64**2 == pytest.approx(numbers, abs=0.005)


@pytest.mark.parametrize("kind", ["adafactor", "lion"])
def test_a_run_resumes_bit_for_bit(kind: str, llama: Path, data: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"optimizer": kind, "weight_decay": 0.1, "steps": 5, "save_every": 2}
    how["keep_checkpoints"] = "all"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(settings(llama, data, whole, **how))
    train(settings(llama, data, cut, **how), [stop_after(3)])
    train(settings(llama, data, cut, **how, resume=True))
    assert rows(cut) == rows(whole)
    resumed = tensors(cut)
    assert {name: resumed[name] for name in resumed if "step-0000003" not in name} == tensors(whole)


def test_a_run_of_older_rules_keeps_its_decay_of_all_weights(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"fine_tune_type": "full", "weight_decay": 10.0, "learning_rate": 1e-3}
    new, whole, cut = (tmp_path / name for name in ("new", "whole", "cut"))
    train(settings(llama, data, new, **how))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "RULES", 3)
        train(settings(llama, data, whole, **how))
        train(settings(llama, data, cut, **how), [stop_after(2)])
    assert yaml.safe_load((cut / CONFIG).read_text())["rules"] == 3
    train(settings(llama, data, cut, **how, resume=True))
    assert rows(cut) == rows(whole)
    by_new, uncut, resumed = (
        mx.load(str(folder / "adapters.safetensors")) for folder in (new, whole, cut)
    )
    assert all(mx.array_equal(resumed[name], uncut[name]) for name in uncut)
    norm = "model.layers.0.input_layernorm.weight"
    assert not mx.array_equal(resumed[norm], by_new[norm])


def inverse_sqrt(warmup: float) -> list[float]:
    return [
        learning_rate_at(s, peak=RATE, steps=50, warmup=warmup, schedule="inverse_sqrt")
        for s in range(50)
    ]


@pytest.mark.parity
@pytest.mark.parametrize("warmup", [0, 1, 8])
def test_the_inverse_square_root_is_that_of_transformers(warmup: int) -> None:
    import torch
    from transformers import get_inverse_sqrt_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = get_inverse_sqrt_schedule(optimizer, warmup)
    theirs = []
    for _ in range(50):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    # Our warm-ups end a step earlier than theirs, which spend their first step at a rate of 0.
    assert inverse_sqrt(warmup)[warmup:] == pytest.approx(theirs[warmup:], rel=1e-12)
    assert inverse_sqrt(warmup)[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-12)


def test_the_inverse_square_root_halves_at_four_times_the_warm_up() -> None:
    rates = inverse_sqrt(8)
    assert rates[7] == rates[8] == RATE
    assert rates[32] == pytest.approx(RATE / 2)
    assert inverse_sqrt(0)[49] == pytest.approx(RATE * math.sqrt(10_000 / 10_049))
