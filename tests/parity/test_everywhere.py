"""One adapter of the demo's base, in every place where it is to work: the same numbers."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from mlx_lm.utils import dequantize_model
from peft import PeftModel
from transformers import AutoModelForCausalLM

from orpo_mlx import loading
from orpo_mlx.cli.main import run
from orpo_mlx.data.pairs.load import load_pairs
from orpo_mlx.data.tokens.encoder import EncodedPair
from orpo_mlx.demo.base import fetch_demo_base
from orpo_mlx.interop.fuse import drift
from tests.parity import llama_cpp
from tests.training.runs import settings

pytestmark = [
    pytest.mark.touchy,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "orpo_mlx" / "data" / "samples"
PAIRS = 4
FEW = 1  # where a token takes long: llama.cpp on one thread
TOLERANCE = 1e-2  # of a response's mean log-prob; float32 sums in other orders differ by 1e-5
# By the demo's rate and rank, enough steps that the adapter shows.
TRAINING = ["--steps", "4", "--batch-size", "1", "--learning-rate", "2e-3", "--eval-pairs", "1"]
COMMANDS = {
    "run": ["train", "--data", str(SAMPLES / "train.jsonl"), *TRAINING],
    "base4": ["convert", "{base}", "--bits", "4", "--group-size", "32"],
    "fused": ["fuse", "--adapter", "{run}"],
    "fused4": ["fuse", "--adapter", "{run}", "--model", "{base4}"],
    "peft": ["export", "{run}", "--to", "peft"],
    "gguf": ["export", "{run}", "--to", "gguf", "--with-base", "--outtype", "f32"],
}
Score = Callable[[Sequence[int]], np.ndarray]  # T ids -> T - 1 log-probs of the next ones


class Folders(NamedTuple):
    """The folders that the commands wrote, and pairs that were not trained on."""

    base: Path
    folders: dict[str, Path]
    pairs: list[EncodedPair]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    base, parent = fetch_demo_base(), tmp_path_factory.mktemp("everywhere")
    folders = {"base": base}
    for name, arguments in COMMANDS.items():
        folders[name] = parent / name
        given = [a.format(**folders) for a in arguments]
        more = ["--model", str(base)] if name == "run" else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drift, "KEPT_BYTES", 1)  # the loss of fusing is measured on a pair
            assert run([*given, *more, "--output", str(folders[name])]) == 0
    config = settings(base, SAMPLES / "test.jsonl", folders["run"], max_seq_length=512)
    encoder = loading.build_encoder(
        loading.open_tokenizer(config, str(base)), loading.template_of(config), thinking=False
    )
    encoded, _ = loading.encode_pairs(load_pairs([str(SAMPLES / "test.jsonl")])[:PAIRS], encoder)
    return Folders(base, folders, encoded)


def command(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return f"$ {module} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def means(score: Score, pairs: Sequence[EncodedPair]) -> np.ndarray:  # (N, 2)
    """Mean log-prob of chosen and rejected, each response alone behind its prompt."""
    results = [score(row) for row in rows_of(pairs)]
    starts = [len(pair.prompt) - 1 for pair in pairs for _ in range(2)]
    logps = [row[start:].mean() for row, start in zip(results, starts, strict=True)]
    return np.array(logps).reshape(-1, 2)


def rows_of(pairs: Sequence[EncodedPair]) -> list[list[int]]:
    """Prompt + chosen, prompt + rejected, pair by pair."""
    return [
        [*pair.prompt.tolist(), *response.tolist()]
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]


def by_mlx_lm(model: Any) -> Score:
    def score(ids: Sequence[int]) -> np.ndarray:
        logits = model(mx.array(ids)[None, :-1])[0].astype(mx.float32)
        logps = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return np.array(mx.take_along_axis(logps, mx.array(ids[1:])[:, None], axis=-1)[:, 0])

    return score


def by_transformers(model: Any) -> Score:
    def score(ids: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids])[:, :-1]).logits[0], -1)
        of_ids: np.ndarray = logps.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        return of_ids

    return score


def transformers_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def wanted(folders: Folders) -> np.ndarray:
    """What `evaluate` says of base + adapter."""
    from orpo_mlx.config.train import EvaluateConfig
    from orpo_mlx.training.evaluate import evaluate

    result = evaluate(
        EvaluateConfig(
            model=folders.base,
            adapter=folders.folders["run"],
            data=[SAMPLES / "test.jsonl"],
            pairs=PAIRS,
        )
    )
    assert result.adapter is not None
    names = ("logps/chosen", "logps/rejected")
    moved = [result.adapter.values[n] - result.base.values[n] for n in names]
    assert np.abs(moved).max() > 10 * TOLERANCE
    return np.stack([result.adapter.values[n] for n in names], axis=1)


def check(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(actual - wanted).max() < TOLERANCE
    sides = (actual[:, 0] > actual[:, 1]), (wanted[:, 0] > wanted[:, 1])
    assert (sides[0] == sides[1]).all()


def test_mlx_lm_with_the_adapter(folders: Folders, wanted: np.ndarray) -> None:
    loaded = mlx_lm.load(str(folders.base), adapter_path=str(folders.folders["run"]))
    check(means(by_mlx_lm(loaded[0]), folders.pairs), wanted)


def test_mlx_lm_with_the_fused_folder(folders: Folders, wanted: np.ndarray) -> None:
    loaded = mlx_lm.load(str(folders.folders["fused"]))
    check(means(by_mlx_lm(loaded[0]), folders.pairs), wanted)


def test_mlx_lm_with_the_fused_4_bit_folder(folders: Folders, wanted: np.ndarray) -> None:
    model = dequantize_model(mlx_lm.load(str(folders.folders["fused4"]))[0])  # faster on a CPU
    assert json.loads((folders.folders["fused4"] / "config.json").read_text())["quantization"]
    results = means(by_mlx_lm(model), folders.pairs)
    # Quantized again: not the same numbers, but far nearer than guessing (10.8 nats a token).
    assert np.abs(results - wanted).max() < 1.0


@pytest.mark.parametrize("folder", ["run", "fused", "fused4"])
def test_mlx_lm_generate_runs_from_a_terminal(folders: Folders, folder: str) -> None:
    model = folders.base if folder == "run" else folders.folders[folder]
    adapter = ["--adapter-path", str(folders.folders["run"])] if folder == "run" else []
    output = command(
        "mlx_lm",
        "generate",
        "--model",
        str(model),
        *adapter,
        "--max-tokens",
        "8",
        "--prompt",
        "My parcel is late.",
    )
    assert "==========" in output and "Generation:" in output


def test_transformers_with_peft(folders: Folders, wanted: np.ndarray) -> None:
    model = PeftModel.from_pretrained(transformers_model(folders.base), folders.folders["peft"])
    check(means(by_transformers(model.eval()), folders.pairs), wanted)


def test_transformers_with_the_fused_folder(folders: Folders, wanted: np.ndarray) -> None:
    model = transformers_model(folders.folders["fused"]).eval()
    check(means(by_transformers(model), folders.pairs), wanted)


def test_llama_cpp_with_base_and_adapter(
    folders: Folders, wanted: np.ndarray, node: Path, tmp_path: Path
) -> None:
    gguf = folders.folders["gguf"]
    pairs = folders.pairs[:FEW]
    rows = rows_of(pairs)
    scored = [len(response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    job = {"rows": rows, "lora": str(gguf / "adapter.gguf"), "scored": scored}
    (base,) = [f for f in gguf.glob("*.gguf") if f.name != "adapter.gguf"]
    (answers,) = llama_cpp.evaluate(node, base, [job], tmp_path)
    given = {tuple(row): np.array(logps) for row, logps in zip(rows, answers, strict=True)}

    def score(ids: Sequence[int]) -> np.ndarray:
        logps = given[tuple(ids)]  # of the response alone
        return np.concatenate([np.full(len(ids) - 1 - len(logps), np.nan), logps])

    check(means(score, pairs), wanted[:FEW])
