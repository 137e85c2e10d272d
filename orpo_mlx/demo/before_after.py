"""The demo: train the demo base on the bundled pairs, and compare before with after."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from orpo_mlx.config.train import DemoConfig, EvaluateConfig, GenerateConfig, TrainConfig
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.events import Callback
from orpo_mlx.model.adapters import apply_adapter
from orpo_mlx.review.answers.generate import Chat, generate, open_chat
from orpo_mlx.training.evaluate import Comparison, Evaluation, evaluate
from orpo_mlx.training.loop import RunResult, train
from orpo_mlx.training.outputs import mean_metrics
from orpo_mlx.training.samples.answer import Answer

PRESET = Path(__file__).with_name("demo.yaml")
SAMPLES = Path(__file__).parents[1] / "data" / "samples"
# What the demo took where the float32 matmul rate was measured as REFERENCE_GFLOPS.
REFERENCE_SECONDS, REFERENCE_GFLOPS = 245.0, 230.0


class BeforeAfter(NamedTuple):
    """One held-out prompt and its answers."""

    prompt: str
    before: Answer
    after: Answer


class DemoResult(NamedTuple):
    """What the demo shows."""

    run: RunResult
    train_seconds: float  # with validation
    comparison: Comparison
    exchanges: list[BeforeAfter]


def load_preset() -> dict[str, Any]:
    """The settings of the demo's run, and which test pairs it answers."""
    preset = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    assert isinstance(preset, dict)
    return preset


def train_config(config: DemoConfig, base: Path) -> TrainConfig:
    """The demo's training run."""
    settings = dict(load_preset()["train"])
    return TrainConfig(
        model=str(base),
        data=[str(SAMPLES / "train.jsonl")],
        valid_data=[str(SAMPLES / "valid.jsonl")],
        output=config.output,
        overwrite=config.overwrite,
        resume=config.resume,
        **settings,
    )


def estimate_seconds(gflops: float) -> float:
    """How long the demo takes from a base that is there, downloads aside."""
    return REFERENCE_SECONDS * REFERENCE_GFLOPS / gflops


def compare_before_after(
    config: TrainConfig, callbacks: Sequence[Callback], log: Callable[[str], None]
) -> tuple[Comparison, list[BeforeAfter]]:
    """Base and adapter on all test pairs, and their answers to three of the test prompts."""

    def report(event: Any) -> None:
        for callback in callbacks:
            callback(event)

    test = str(SAMPLES / "test.jsonl")
    measured = evaluate(
        EvaluateConfig(model=config.model, adapter=config.output, data=[test], beta=config.beta),
        report,
    )
    pairs = load_pairs(test)
    prompts = [str(pairs[i].prompt) for i in load_preset()["prompts"]]
    log("Answering three test prompts, before and after.")
    # One base for both: its tokenizer and template are those that training used.
    chat = open_chat(GenerateConfig(model=config.model, prompt=""))
    before = answers(chat, prompts)
    apply_adapter(chat.model, config.output)
    after = answers(chat, prompts)
    exchanges = [BeforeAfter(*parts) for parts in zip(prompts, before, after, strict=True)]
    return measured, exchanges


def by_kind(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Means over all pairs and over those of each kind: brush-offs, and subtly wrong answers."""
    kinds = np.array([pair.labels.get("kind", "") for pair in evaluation.pairs])
    means = {"all": evaluation.means()}
    for kind in sorted(set(kinds) - {""}):
        chosen = {name: array[kinds == kind] for name, array in evaluation.values.items()}
        means[kind] = {**mean_metrics(chosen), "pairs": float((kinds == kind).sum())}
    return means


def run_demo(
    config: DemoConfig, base: Path, callbacks: Sequence[Callback], log: Callable[[str], None]
) -> DemoResult | None:
    """Train, measure, answer; None if the training was stopped."""
    settings = train_config(config, base)
    started = time.perf_counter()
    run = train(settings, callbacks)
    seconds = time.perf_counter() - started
    if run.stopped:
        return None
    return DemoResult(run, seconds, *compare_before_after(settings, callbacks, log))


def answers(chat: Chat, prompts: Sequence[str]) -> list[Answer]:
    """The likeliest answer to each prompt, of at most 200 tokens."""
    config = GenerateConfig(model="", prompt="", max_tokens=200)
    return [list(generate(chat, prompt, config))[-1] for prompt in prompts]
