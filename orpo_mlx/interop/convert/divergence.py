"""What a conversion cost: perplexity, KL and the same first choice, on a bundled text."""

import math
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orpo_mlx import backend
from orpo_mlx.config.interop import ConvertConfig
from orpo_mlx.events import Callback, Progress
from orpo_mlx.files import save_json
from orpo_mlx.interop.checkpoint.sidecar import CONVERT_REPORT
from orpo_mlx.model.base import Base, load_base
from orpo_mlx.model.divergence import token_divergence, word_logps

TEXT = "measured_text.txt"
WINDOW = 256  # tokens that see each other


class Divergence(NamedTuple):
    """A converted model against its original, over the same tokens."""

    tokens: int  # predicted
    perplexity_original: float
    perplexity: float
    kl: float  # mean over tokens of KL(original || converted), in nats
    top1_agreement: float  # share of tokens whose likeliest successor is the same


def measure_divergence(
    original: Path, converted: Path, options: ConvertConfig, report: Callback
) -> Divergence:
    """Run both over the bundled text, one after the other: memory holds one model.

    The original's log-probabilities wait in a file, 4 bytes a token and word.
    """
    base = _load(original, options)
    text = files("orpo_mlx.interop.convert").joinpath(TEXT).read_text(encoding="utf-8")
    ids = base.tokenizer.encode(text, add_special_tokens=False)
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    with tempfile.TemporaryFile(dir=converted.parent) as kept:
        for logps in _logps(base, windows, "Measuring the original", report):
            kept.write(np.ascontiguousarray(logps).tobytes())
        kept.seek(0)
        del base
        mx.clear_cache()
        changed = _logps(_load(converted, options), windows, "Measuring the result", report)
        rows = []
        for window, logps in zip(windows, changed, strict=True):
            before = np.frombuffer(kept.read(logps.nbytes), np.float32).reshape(logps.shape)
            rows.append(_compare(before, logps, np.array(window[1:])))
    return _summary(np.concatenate(rows))


def save_report(divergence: Divergence, folder: Path) -> None:
    save_json(folder / CONVERT_REPORT, divergence._asdict())


def _load(folder: Path, options: ConvertConfig) -> Base:
    return load_base(
        str(folder),
        trust_remote_code=options.trust_remote_code,
        keep_quantized=not backend.is_cpu(),  # on the CPU the same numbers in a twentieth of time
    )


def _logps(
    base: Base, windows: list[list[int]], stage: str, report: Callback
) -> Iterator[np.ndarray]:
    """(T, V) log-probabilities of every window in float32: of what follows each token but one."""
    for done, window in enumerate(windows, 1):
        yield np.array(word_logps(base.model, window))
        report(Progress(stage, done, len(windows)))


def _compare(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(T, 4): log-prob of the target before and after, KL, and whether the first choice stays."""
    rows = np.arange(len(targets))
    measured = token_divergence(before, after)
    return np.stack([before[rows, targets], after[rows, targets], *measured], axis=1)


def _summary(rows: np.ndarray) -> Divergence:
    before, after, kl, same = rows.mean(axis=0)
    return Divergence(len(rows), math.exp(-before), math.exp(-after), float(kl), float(same))
