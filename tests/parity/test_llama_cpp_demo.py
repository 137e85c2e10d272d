"""An adapter trained on the demo base, in llama.cpp: the same answers, the same log-probs."""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from orpo_mlx.config.interop import ExportConfig
from orpo_mlx.config.train import EvaluateConfig, TrainConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.demo.before_after import SAMPLES
from orpo_mlx.interop.gguf.adapter import export_gguf
from orpo_mlx.loading import build_encoder, encode_all, open_base, template_of
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.training.loop import train
from tests.parity import llama_cpp

pytestmark = [pytest.mark.long, pytest.mark.parity]

ANSWERED, SCORED, TOKENS = 1, 2, 24
# Means over an answer's tokens. float32: 30 layers, sums in another order. float16 weights round
# to 11 bits, q8_0 to 8 bits a block of 32 and its activations too.
FLOAT32, FLOAT16, Q8_0 = 2e-5, 1e-2, 5e-2


class Trained(NamedTuple):
    """A run on the demo base, the model with its adapter, and held-out pairs."""

    run: Path
    model: nn.Module
    ends: set[int]
    pairs: list[EncodedPair]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, base = tmp_path_factory.mktemp("demo"), str(fetch_demo_base())
    config = TrainConfig(
        model=base, data=[str(SAMPLES / "train.jsonl")], output=folder / "run", steps=4,
        batch_size=1, learning_rate=2e-3, beta=0.5, rank=8, alpha=16, num_layers=8,
        max_seq_length=256, valid_fraction=0,
    )  # fmt: skip
    run = train(config).output
    data = [str(SAMPLES / "test.jsonl")]
    options = EvaluateConfig(model=base, adapter=run, data=data)
    opened = open_base(options, run)
    encoder = build_encoder(opened, template_of(options, run), False)
    pairs = encode_all(encoder, load_pairs(data)[:SCORED], "held-out", lambda event: None)
    apply_adapter(opened.model, run)
    return Trained(run, opened.model, set(opened.tokenizer.eos_token_ids), pairs)


def export(trained: Trained, output: Path, **settings: object) -> Path:
    config = ExportConfig(adapter=trained.run, to="gguf", output=output, **settings)
    export_gguf(config, lambda event: None)
    return output


def scoring(trained: Trained) -> dict[str, Any]:
    """The job of scoring every chosen answer after its prompt."""
    rows = [[int(i) for i in (*pair.prompt, *pair.chosen)] for pair in trained.pairs]
    return {"rows": rows, "scored": [len(pair.chosen) for pair in trained.pairs]}


def means(logps: list[list[float]]) -> np.ndarray:
    """The mean log-prob of each answer's tokens."""
    return np.array([np.mean(row) for row in logps])


def our_means(trained: Trained) -> np.ndarray:
    """The same from mlx-lm's logits; in float64, since 49,152 terms in float32 are 2e-4 off."""
    logps = []
    for pair in trained.pairs:
        ids = mx.array([[*map(int, pair.prompt), *map(int, pair.chosen)]])
        logits = np.array(trained.model(ids))[0, -len(pair.chosen) - 1 : -1].astype(np.float64)
        wanted = np.take_along_axis(logits, np.array(pair.chosen)[:, None], axis=-1)[:, 0]
        largest = logits.max(-1)
        logps.append((wanted - largest - np.log(np.exp(logits.T - largest).sum(0))).tolist())
    return means(logps)


def our_answer(trained: Trained, prompt: list[int]) -> list[int]:
    """The likeliest tokens, up to the end of the turn."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), trained.model, max_tokens=TOKENS):
        if int(token) in trained.ends:
            break
        tokens.append(int(token))
    return tokens


def test_adapter_and_fused_model_answer_as_mlx_lm_does(
    node: Path, trained: Trained, tmp_path: Path
) -> None:
    prompts = [list(map(int, pair.prompt)) for pair in trained.pairs[:ANSWERED]]
    ours = [our_answer(trained, prompt) for prompt in prompts]
    assert max(map(len, ours)) == TOKENS
    both = export(trained, tmp_path / "both", with_base=True, outtype="f32")
    answers = {"rows": prompts, "greedy": TOKENS, "lora": str(both / "adapter.gguf")}
    jobs = [answers, scoring(trained) | {"lora": answers["lora"]}, scoring(trained)]
    theirs, adapted, plain = llama_cpp.evaluate(node, both / "base.gguf", jobs, tmp_path)
    assert theirs == ours
    expected = our_means(trained)
    np.testing.assert_allclose(means(adapted), expected, atol=FLOAT32, rtol=0)
    assert np.abs(means(plain) - expected).min() > FLOAT16
    fused = export(trained, tmp_path / "fused", fused=True, outtype="f32")
    del answers["lora"]
    assert llama_cpp.evaluate(node, fused / "model.gguf", [answers], tmp_path) == [ours]


@pytest.mark.parametrize(("outtype", "tolerance"), [("f16", FLOAT16), ("q8_0", Q8_0)])
def test_smaller_fused_models_score_the_same_answers_nearly_alike(
    node: Path, trained: Trained, tmp_path: Path, outtype: str, tolerance: float
) -> None:
    fused = export(trained, tmp_path / "fused", fused=True, outtype=outtype)
    (logps,) = llama_cpp.evaluate(node, fused / "model.gguf", [scoring(trained)], tmp_path)
    np.testing.assert_allclose(means(logps), our_means(trained), atol=tolerance, rtol=0)
