"""metrics.jsonl: written during a run, read when it resumes.

Imports no mlx.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import replacing, write_error


class MetricsLog:
    """metrics.jsonl: one JSON object a line, flushed as it is written."""

    def __init__(self, file: Path, *, after_step: int = 0, report: Callback = lambda event: None):
        """Open for appending; lines after `after_step`, of a run cut short, are removed.

        Lines that are not a run's go into a file of their own, which is reported.
        """
        self._file = file
        self.evaluated_step = -1
        self.evaluation: dict[str, float] = {}  # the last validation's metrics
        if file.exists():
            rows, foreign = read_metrics(file)
            kept = [row for row in rows if row["step"] <= after_step]
            if foreign:
                _set_aside(file, foreign, report)
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
            raise write_error(self._file, error) from None
        self._keep_evaluation(row)

    def steps(self, count: int) -> list[dict[str, float]]:
        """The metrics of the first `count` training steps."""
        return [row for row in load_metrics(self._file) if "loss" in row][:count]

    def _keep_evaluation(self, row: Mapping[str, float]) -> None:
        if "eval_loss" in row:
            self.evaluated_step = int(row["step"])
            self.evaluation = {name: value for name, value in row.items() if name != "step"}


def load_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, without lines that are not a run's."""
    return read_metrics(file)[0]


def read_metrics(file: Path) -> tuple[list[dict[str, float]], list[bytes]]:
    """The rows of a metrics.jsonl, and the lines that are not a run's.

    A last line that a kill cut short is neither.
    """
    rows, foreign = [], []
    try:
        *lines, rest = file.read_bytes().split(b"\n")
    except OSError as error:
        raise OrpoError(f"{file} cannot be read: {error.strerror}.") from None
    for line in lines:
        if (row := metrics_row(line)) is not None:
            rows.append(row)
        elif line.strip():
            foreign.append(line)
    if (row := metrics_row(rest)) is not None:
        rows.append(row)
    return rows, foreign


def metrics_row(line: bytes) -> dict[str, float] | None:
    """A line as a run writes it: numbers by name, `step` among them."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    numbers = all(isinstance(value, int | float) for value in row.values())
    return row if numbers else None


def _set_aside(file: Path, lines: Sequence[bytes], report: Callback) -> None:
    aside = file.with_name(f"{file.name}.bad")
    try:
        with aside.open(mode="a+b") as stream:
            stream.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise write_error(aside, error) from None
    count = f"{len(lines)} line{'s' * (len(lines) > 1)}"
    report(Notice(f"{file}: {count} not of a run moved to {aside}.", warning=True))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
