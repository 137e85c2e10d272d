"""Memory of the paths, next to each other on one random model: ratios of peaks."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.parts import step_of
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.model import lora
from orpo_mlx.training.forward_path import fast_path, plain_path
from tests import tiny


def model_with_adapter() -> nn.Module:
    """Four blocks of 128, in which activations outweigh what every path needs."""
    model, _ = tiny.build_model(
        "llama", hidden_size=128, num_hidden_layers=4, intermediate_size=384, vocab_size=2048
    )
    targets = lora.find_targets(model, ["all-linear"], -1)
    lora.attach(model, targets, kind="lora", rank=8, scale=2.0, dropout=0.0, bits={})
    model.train()
    mx.eval(model.parameters())
    return model


def pairs_under_one_system_prompt() -> list[EncodedPair]:
    """Four pairs: 256 shared tokens, prompts of 24, responses of 48."""
    ids = np.random.default_rng(0).integers(1, 2048, (4, 120), dtype=np.int32)
    system = np.arange(1, 257, dtype=np.int32)
    return [
        EncodedPair(np.concatenate([system, row[:24]]), row[24:72], row[72:], "") for row in ids
    ]


def test_a_shared_system_prompt_takes_memory_once() -> None:
    model, pairs = model_with_adapter(), pairs_under_one_system_prompt()
    fast, _ = fast_path(model)
    # The tokens are 728 for 2,616, so 0.28; two thirds of that gain must be there.
    assert step_of(fast, pairs)() <= 0.45 * step_of(plain_path(model), pairs)()
