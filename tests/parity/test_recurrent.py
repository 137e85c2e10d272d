"""Gated delta layers in chunks, through the tree, against transformers' own models."""

from pathlib import Path

import numpy as np
import pytest

from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model.base import load_base
from orpo_mlx.training.forward_path import arrays_of, fast_path
from tests.families import VOCABULARY
from tests.parity.peft_bases import build_theirs
from tests.parity.peft_comparison import TOLERANCES

pytestmark = pytest.mark.touchy


def random_pairs() -> list[EncodedPair]:
    """Two pairs after one system prompt; the longest row is longer than two chunks."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return random.integers(3, VOCABULARY, count).astype(np.int32)

    system = tokens(40)
    prompts = [np.concatenate([system, tokens(n)]) for n in (60, 21)]
    return [EncodedPair(p, tokens(31), tokens(9), "") for p in prompts]


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_next"])
def test_log_probs_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    import torch

    theirs, pairs = build_theirs(family, tmp_path / "base"), random_pairs()
    path, reason = fast_path(load_base(str(tmp_path / "base")).model)
    assert (reason, path.form) == (None, "chunked")
    batch = path.batch(pairs, range(len(pairs)), "response")
    calls, targets, *_ = arrays_of(batch)
    path.model.eval()
    logps = np.array(path.token_logps(calls, targets))
    responses = [(p, r) for r in ("chosen", "rejected") for p in pairs]
    for weights, (pair, name) in zip(batch.weights, responses, strict=True):
        response = getattr(pair, name)
        ids = torch.tensor(np.concatenate([pair.prompt, response]))[None].long()
        with torch.no_grad():
            scores = theirs(ids[:, :-1]).logits[0, len(pair.prompt) - 1 :].log_softmax(-1)
        expected = scores.gather(-1, ids[0, len(pair.prompt) :, None])[:, 0].numpy()
        np.testing.assert_allclose(logps[weights > 0], expected, atol=TOLERANCES[family])
