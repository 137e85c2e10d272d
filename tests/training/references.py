"""Pairs of random tokens, every path through a tiny model, and what float64 says of a pair."""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from orpo_mlx.data.batching.prefix_tree import Batch
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path, plain_path
from orpo_mlx.training.outputs import PairOutputs, pair_outputs
from tests import tiny

BETA = 0.3
# Lengths of prompt, chosen, rejected: single tokens, either response the longer one.
SHAPES = [(5, 9, 3), (1, 1, 1), (23, 2, 14), (8, 31, 30), (3, 1, 6)]
# float32 through three layers, its sums in another order for another padding; about 1e-6 here.
ATOL = 1e-5


def random_pairs(
    shapes: Sequence[tuple[int, int, int]] = SHAPES, *, lowest: int = 0
) -> list[EncodedPair]:
    """A pair of each shape. Token 0, which pads, is among the tokens."""
    random = np.random.default_rng(0)
    return [
        EncodedPair(
            *(random.integers(lowest, tiny.VOCABULARY, n).astype(np.int32) for n in shape), ""
        )
        for shape in shapes
    ]


def kindred_pairs(*, lowest: int = 0) -> list[EncodedPair]:
    """The same under one system prompt; three of them with responses that begin alike."""
    random = np.random.default_rng(1)
    system = random.integers(lowest, tiny.VOCABULARY, 20)
    pairs = []
    for number, (prompt, chosen, rejected, location, _) in enumerate(random_pairs(lowest=lowest)):
        together = random.integers(lowest, tiny.VOCABULARY, (0, 4, 1, 0, 17)[number])
        parts = ((system, prompt), (together, chosen), (together, rejected))
        pairs.append(EncodedPair(*(np.concatenate(p).astype(np.int32) for p in parts), location))
    return pairs


def path_through(model: nn.Module, kind: str, *, checkpoint: bool = False) -> ForwardPath:
    if kind == "plain":
        return plain_path(model, checkpoint=checkpoint)
    if kind == "rows":
        return plain_path(model, layout="rows", checkpoint=checkpoint)
    path, reason = fast_path(model, checkpoint=checkpoint, rounding=2 * (kind == "rounded"))
    assert reason is None
    return path


def outputs_of(path: ForwardPath, batch: Batch) -> PairOutputs:
    return pair_outputs(path, arrays_of(batch), beta=BETA)


class Reference:
    """The log-probs of a pair, each response alone through the model's own call."""

    def __init__(self, model: nn.Module, pair: EncodedPair):
        chosen = self._token_logps(model, [*pair.prompt, *pair.chosen])
        rejected = self._token_logps(model, [*pair.prompt, *pair.rejected])
        self.chosen = chosen[-len(pair.chosen) :].mean()
        self.rejected = rejected[-len(pair.rejected) :].mean()
        # Every token but the first is predicted from those before it.
        self.prompt_and_chosen = chosen.mean()

    @staticmethod
    def _token_logps(model: nn.Module, tokens: Sequence[int]) -> np.ndarray:
        """log p of the second to the last token, in float64."""
        logits = np.array(model(mx.array([list(map(int, tokens))]))[0, :-1], dtype=np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return logps[np.arange(len(tokens) - 1), tokens[1:]]

    @property
    def log_odds(self) -> float:
        odds = [p / (1 - p) for p in (math.exp(self.chosen), math.exp(self.rejected))]
        return math.log(odds[0] / odds[1])

    def loss(self, nll: float) -> float:
        return nll + BETA * math.log(1 + math.exp(-self.log_odds))


def assert_same(got: mx.array, expected: Sequence[float] | mx.array) -> None:
    np.testing.assert_allclose(np.array(got), np.array(expected), atol=ATOL, rtol=0)
