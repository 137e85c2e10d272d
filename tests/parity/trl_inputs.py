"""Inputs of the comparison with TRL, made without random numbers: alike everywhere."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from tests import tiny

RECORD = Path(__file__).with_name("trl.json")
BETA = 0.7
IGNORED = -100  # what TRL's labels hold where nothing is scored
SHAPES = [(5, 9, 3), (1, 1, 1), (12, 2, 7), (3, 1, 17)]  # tokens of prompt, chosen, rejected
DIRECTIONS = 2  # along which a gradient is recorded


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers between -1 and 1 that look random."""
    count = int(np.prod(shape))
    waves = np.sin(np.arange(1, count + 1) * 12.9898 + seed * 78.233) * 43758.5453
    return np.modf(waves)[0].reshape(shape)


def mean_logps() -> np.ndarray:  # (2, 40) float32
    """Mean log-probs from -1e-3 to -20 of chosen and rejected responses."""
    return -np.exp(noise((2, 40), 1) * np.log(20 / 1e-3) / 2 + np.log(20 * 1e-3) / 2).astype(
        np.float32
    )


def pairs() -> list[list[np.ndarray]]:
    """Token ids of prompt, chosen and rejected by SHAPES."""
    return [
        [
            (np.abs(noise((length,), 10 * n + part)) * tiny.VOCABULARY).astype(np.int32)
            for part, length in enumerate(shape)
        ]
        for n, shape in enumerate(SHAPES)
    ]


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt and response of all chosen, then of all rejected."""
    return [(pair[0], pair[part]) for part in (1, 2) for pair in pairs()]


def logits() -> np.ndarray:  # (8, T, V) float32
    length = max(len(prompt) + len(response) for prompt, response in rows())
    return (9 * noise((len(rows()), length, tiny.VOCABULARY), 3)).astype(np.float32)


def labels() -> np.ndarray:  # (8, T)
    """The rows as TRL labels them."""
    filled = np.full(logits().shape[:2], IGNORED)
    for label, (prompt, response) in zip(filled, rows(), strict=True):
        label[len(prompt) : len(prompt) + len(response)] = response
    return filled


def llama(tied: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny llama whose weights are `noise`, and its config."""
    model, config = tiny.build_model(tie_word_embeddings=tied)
    named = sorted(tree_flatten(model.parameters()))
    weights = [
        (name, mx.array((weight.ndim == 1) + noise(weight.shape, n) / 8, dtype=mx.float32))
        for n, (name, weight) in enumerate(named)
    ]
    model.load_weights(weights)
    return model, config


def projections(gradient: np.ndarray) -> list[float]:
    """A gradient's norm, its largest entry, and its extent along two directions."""
    along = [(gradient * noise(gradient.shape, 50 + n)).sum() for n in range(DIRECTIONS)]
    return [float(v) for v in (np.linalg.norm(gradient), np.abs(gradient).max(), *along)]


def recorded() -> dict[str, Any]:
    """What TRL made of these inputs."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record
