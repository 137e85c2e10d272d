"""Measure single parts as ratios within this one run: steps, tokens, checks, start, sample."""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from orpo_mlx import backend

backend.prepare()

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.base import write_random_base
from benchmarks.bench import RandomBase
from orpo_mlx import loading
from orpo_mlx.config.data import DataCheckConfig
from orpo_mlx.config.judging import SampleConfig
from orpo_mlx.config.train import GenerateConfig, TrainConfig
from orpo_mlx.data.pairs.load import Reading, load_pairs
from orpo_mlx.data.reading.sources import find_sources
from orpo_mlx.data.tokens.cache import token_cache
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.data.tokens.pipeline import Loader
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.demo.before_after import SAMPLES
from orpo_mlx.model import lora
from orpo_mlx.model.base import load_weights
from orpo_mlx.review.answers.generate import generate, open_chat
from orpo_mlx.review.pairs.check import check_data
from orpo_mlx.sampling.sample import sample
from orpo_mlx.training.forward_path import ForwardPath, arrays_of, fast_path, plain_path

VOCABULARY = 8192
# The tokenizer's own batches of the same texts, in one process with its threads.
TOKENIZER_ALONE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [text for line in open(sys.argv[2]) for text in json.loads(line)]
started = time.perf_counter()
for start in range(0, len(texts), 750):
    tokenizer.encode_batch_fast(texts[start : start + 750], add_special_tokens=False)
print(time.perf_counter() - started)
"""


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Time of the first relative to the second: the median of rounds in which they take turns, so
    that other work on the machine affects both."""
    return median(seconds(first) / seconds(second) for _ in range(rounds))


def bench_steps(options: argparse.Namespace) -> None:
    """With and without checkpointing, and a shared system prompt on both paths: time and memory."""
    model = build_model(options.hidden)
    pairs = draw_pairs(0, 100, 300, 1)
    whole, again = (step_of(fast_path(model, checkpoint=c)[0], pairs) for c in (False, True))
    show_steps("checkpointed / not", again, whole, options.rounds)
    pairs = draw_pairs(256, 24, 48, 4)
    tree, rows = (step_of(path, pairs) for path in (fast_path(model)[0], plain_path(model)))
    show_steps("fast / plain path, 4 pairs with one system prompt", tree, rows, options.rounds)


def show_steps(name: str, first: Callable[[], int], second: Callable[[], int], rounds: int) -> None:
    memory = first() / second()
    print(f"{name}: {paired(first, second, rounds):.2f} of the time, {memory:.2f} of the memory")


def build_model(hidden: int) -> nn.Module:
    """Twelve blocks, at a width of 384 wide enough that matmuls and not calls take the time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "base"
        write_random_base(RandomBase("llama", 12, hidden, VOCABULARY), folder)
        model, _, _ = load_weights(folder, "base")
        mx.eval(model.parameters())
    targets = lora.find_targets(model, [lora.ALL_LINEAR], -1)
    lora.attach(model, targets, kind="lora", rank=8, scale=2.0, dropout=0.0, bits={})
    model.train()
    mx.eval(model.parameters())
    return model


def draw_pairs(system: int, prompt: int, response: int, count: int) -> list[EncodedPair]:
    shape = (count, system + prompt + 2 * response)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, shape, dtype=np.int32)
    ids[:, :system] = ids[0, :system]
    start = system + prompt
    return [EncodedPair(r[:start], r[start:-response], r[-response:], "") for r in ids]


def step_of(path: ForwardPath, pairs: list[EncodedPair]) -> Callable[[], int]:
    """A gradient that returns its peak memory beyond what was there before, in bytes."""
    model = path.model
    calls, targets, weights, *_ = arrays_of(path.batch(pairs, range(len(pairs)), "response"))
    trained = model.trainable_parameters()

    def loss(values: Any) -> mx.array:
        model.update(values)
        return (weights * path.token_logps(calls, targets)).sum()

    def step() -> int:
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        with path.differentiated():
            gradients = mx.grad(loss)(trained)
        model.update(trained)
        mx.eval(gradients)
        return mx.get_peak_memory() - before

    return step


def bench_tokens(options: argparse.Namespace) -> None:
    """Pairs to cached ids, relative to the tokenizer alone on the texts that the template makes."""
    base = Path(options.model or fetch_demo_base())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, texts = write_pairs(folder / "pairs.jsonl", options.pairs), folder / "texts.jsonl"
        config = TrainConfig(model=str(base), data=[str(file)], output=folder / "run")
        tokenizer, template = loading.open_tokenizer(config, str(base)), loading.template_of(config)
        encoder = loading.build_encoder(tokenizer, template, thinking=False)
        with texts.open("w", encoding="utf-8") as stream:
            for pair in load_pairs(file):
                stream.write(json.dumps(encoder.render_pair(pair, Counter())) + "\n")
        (source,) = find_sources([str(file)], splits=["train"])
        command = [sys.executable, "-c", TOKENIZER_ALONE, str(base / "tokenizer.json"), str(texts)]
        own, alone = 0.0, 0.0
        for number in range(options.rounds):
            os.environ["ORPO_MLX_CACHE"] = str(folder / str(number))
            loader = Loader(encoder, Reading(), token_cache(), processes=1)
            own += seconds(lambda loader=loader: loader.load(source))  # type: ignore[misc]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            alone += float(done.stdout)
    print(f"pairs cached: {alone / own:.2f} of the tokenizer's own rate ({own:.1f} s)")


def bench_checks(options: argparse.Namespace) -> None:
    """`data check` of many pairs, relative to finding the words of the same texts once."""
    with tempfile.TemporaryDirectory() as name:
        file = write_pairs(Path(name) / "pairs.jsonl", options.pairs)
        text = file.read_text(encoding="utf-8").lower()
        unit = seconds(lambda: Counter(re.findall(r"\w+", text)))
        spent = seconds(lambda: check_data(DataCheckConfig(data=[str(file)])))
    ratio = f"{spent / unit:.0f} times finding their words"
    print(f"{options.pairs:,} pairs checked: {spent:.1f} s, {ratio}")


def bench_start(options: argparse.Namespace) -> None:
    """The help of a few commands, relative to the import of click and pydantic."""
    reference = run_python("-c", "import click, pydantic")
    for name in ("train", "data", "push", "doctor"):
        shown = run_python("-m", "orpo_mlx", name, "--help")
        print(f"{name} --help: {paired(shown, reference, options.rounds):.2f}")


def bench_sample(options: argparse.Namespace) -> None:
    """Tokens a second for four answers to eight prompts: `sample`, and `generate` in a loop."""
    base, ratios = str(options.model or fetch_demo_base()), list[float]()
    rows = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [str(json.loads(line)["prompt"]) for line in rows[:8]]
    length: dict[str, Any] = {"model": base, "max_tokens": options.tokens, "temperature": 0.8}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            prompts, output = Path(name) / "prompts.txt", Path(name) / "answers.jsonl"
            prompts.write_text("\n".join(asked), encoding="utf-8")
            config = SampleConfig(prompts=[str(prompts)], output=output, seed=number, **length)
            together = rate_of(lambda config=config: answers_of(config))  # type: ignore[misc]
        one = GenerateConfig(prompt="", seed=number, **length)
        alone = rate_of(lambda one=one: loop_of(one, asked * 4))  # type: ignore[misc]
        ratios.append(together / alone)
        print(f"sample {together:.1f}, generate {alone:.1f} tokens a second")
    print(f"sample / generate: {median(ratios):.1f} times the tokens a second, loading included")


def rate_of(work: Callable[[], int]) -> float:
    """Tokens a second of work that returns how many tokens it made."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def answers_of(config: SampleConfig) -> int:
    sampled = sample(config, follow_cut=False)
    return sum(row.tokens for source in sampled.sources for row in source.answers)


def loop_of(config: GenerateConfig, prompts: list[str]) -> int:
    chat, tokens = open_chat(config), 0
    for number, prompt in enumerate(prompts):
        *_, last = generate(chat, prompt, config.model_copy(update={"seed": number}))
        tokens += last.tokens
    return tokens


def run_python(*arguments: str) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, capture_output=True, check=True)


def write_pairs(file: Path, count: int) -> Path:
    """Pairs of about 400 tokens, made of the bundled pairs' words."""
    lines = (SAMPLES / "train.jsonl").read_text(encoding="utf-8").splitlines()
    keys = ("prompt", "chosen", "rejected")
    words = " ".join(json.loads(line)[key] for line in lines for key in keys).split()
    drawn = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            text = drawn.sample(words, 312)
            parts = [str(number), *text[:78]], text[78:195], text[195:]
            row = {key: " ".join(part) for key, part in zip(keys, parts, strict=True)}
            stream.write(json.dumps(row) + "\n")
    return file


PARTS = {
    "steps": bench_steps,
    "tokens": bench_tokens,
    "checks": bench_checks,
    "start": bench_start,
    "sample": bench_sample,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS), nargs="+")
    parser.add_argument("--rounds", type=int, default=5, help="in which both take turns [5]")
    parser.add_argument("--pairs", type=int, default=15_000, help="of tokens and checks [15000]")
    parser.add_argument("--model", help="folder of a base for tokens, sample [the demo base]")
    parser.add_argument("--hidden", type=int, default=384, help="width of the model of steps [384]")
    parser.add_argument("--tokens", type=int, default=96, help="longest answer of sample [96]")
    options = parser.parse_args(arguments)
    for part in options.part:
        PARTS[part](options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
