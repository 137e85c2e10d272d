"""metrics.jsonl: written during a run, read when it resumes. Imports no mlx."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import stdev

from orpo_mlx.errors import OrpoError
from orpo_mlx.files import replacing


class MetricsLog:
    """metrics.jsonl: one JSON object a line, flushed as it is written."""

    def __init__(self, file: Path, *, after_step: int = 0):
        """Open for appending; lines after `after_step`, of a run cut short, are removed."""
        self._file = file
        self.evaluated_step = -1
        self.evaluation: dict[str, float] = {}  # the last validation's metrics
        if file.exists():
            kept = [row for row in load_metrics(file) if row["step"] <= after_step]
            with replacing(file) as new:
                new.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            for row in kept:
                self._keep_evaluation(row)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OrpoError(f"{self._file} cannot be written: {error.strerror}.") from None
        self._keep_evaluation(row)

    def losses(self) -> list[float]:
        """The training loss of every step so far."""
        return [row["loss"] for row in load_metrics(self._file) if "loss" in row]

    def _keep_evaluation(self, row: Mapping[str, float]) -> None:
        if "eval_loss" in row:
            self.evaluated_step = int(row["step"])
            self.evaluation = {name: value for name, value in row.items() if name != "step"}


def load_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def early_rise(losses: Sequence[float]) -> tuple[float, float] | None:
    """From where to where the loss of the first steps rose, if by more than chance.

    The later half is compared with the first step, which saw the untouched model, and with the
    earlier half. Each step sees other pairs, so two standard errors of noise are allowed, and 2 %.
    """
    half = len(losses) // 2
    if half < 4:
        return None
    late = losses[half:]
    for start in (losses[:1], losses[:half]):
        noise = stdev(late) * math.sqrt(1 / len(start) + 1 / len(late))
        if mean(late) > 1.02 * mean(start) + 2 * noise:
            return mean(start), mean(late)
    return None
