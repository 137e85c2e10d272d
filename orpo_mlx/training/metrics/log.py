"""metrics.jsonl: written during a run, read when it resumes.

Imports no mlx.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orpo_mlx.errors import MAX_SHOWN, OrpoError
from orpo_mlx.events import Callback, Notice
from orpo_mlx.files import replacing, sync_file, write_error


class MetricsLog:
    """metrics.jsonl: one JSON object a line, flushed as it is written."""

    def __init__(self, file: Path, *, after_step: int = 0, report: Callback = lambda event: None):
        """Open for appending; lines after `after_step`, of a run cut short, are removed.

        Lines that are not a run's go into a file of their own, which is reported.
        """
        self._file = file
        self.evaluations: list[Mapping[str, float]] = []  # rows, `step` included
        kept = list[dict[str, float]]()
        if file.exists():
            rows, foreign = read_metrics(file)
            kept = [row for row in rows if row["step"] <= after_step]
            if foreign:
                _set_aside(file, foreign, report)
            with replacing(file) as new:
                new.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            self.evaluations = [row for row in kept if "eval_loss" in row]
        if gaps := missing_steps(kept, after_step):
            text = f"{file.name} lacks {gaps} of the {after_step} before this checkpoint."
            report(Notice(text, warning=True))

    @property
    def evaluated_step(self) -> int:
        """The step of the last validation; -1: there was none."""
        return int(self.evaluations[-1]["step"]) if self.evaluations else -1

    def evaluation(self, step: int) -> dict[str, float]:
        """The metrics of the last validation up to a step; empty if there was none."""
        row = next((r for r in reversed(self.evaluations) if r["step"] <= step), {})
        return {name: value for name, value in row.items() if name != "step"}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise write_error(self._file, error) from None
        if "eval_loss" in row:
            self.evaluations.append(row)

    def steps(self, count: int) -> list[dict[str, float]]:
        """The metrics of the first `count` training steps whose update was made."""
        return [row for row in load_metrics(self._file) if "loss" in row][:count]

    def skipped(self) -> tuple[int, int]:
        """How many steps' updates were left out so far, and how many of them in a row just now."""
        rows = load_metrics(self._file) if self._file.exists() else []
        skips = ["skipped" in row for row in rows if "loss" in row or "skipped" in row]
        in_a_row = next((n for n, skip in enumerate(reversed(skips)) if not skip), len(skips))
        return sum(skips), in_a_row


def missing_steps(rows: Sequence[Mapping[str, float]], last: int) -> str:
    """The steps from 1 to `last` of which no row holds training metrics: "steps 2 to 4 and 7".

    Empty if there are none; at most MAX_SHOWN ranges are named.
    """
    trained = {int(row["step"]) for row in rows if any(not _of_validation(name) for name in row)}
    gaps = list[list[int]]()
    for step in (step for step in range(1, last + 1) if step not in trained):
        if gaps and gaps[-1][1] == step - 1:
            gaps[-1][1] = step
        else:
            gaps.append([step, step])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in gaps[:MAX_SHOWN]]
    if len(gaps) > MAX_SHOWN:
        texts.append(f"{sum(b - a + 1 for a, b in gaps[MAX_SHOWN:])} more")
    if not gaps:
        return ""
    steps = "step" if len(gaps) == 1 and gaps[0][0] == gaps[0][1] else "steps"
    return f"{steps} {' and '.join(part for part in (', '.join(texts[:-1]), texts[-1]) if part)}"


def _of_validation(name: str) -> bool:
    return name == "step" or name.startswith("eval_")


def sync_metrics(file: Path) -> None:
    """Flush the rows so far to the disk itself; raises OrpoError if that fails."""
    try:
        if file.exists():
            sync_file(file)
    except OSError as error:
        raise write_error(file, error) from error


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
        if (row := _row(line)) is not None:
            rows.append(row)
        elif line.strip():
            foreign.append(line)
    if (row := _row(rest)) is not None:
        rows.append(row)
    return rows, foreign


def _row(line: bytes) -> dict[str, float] | None:
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
        with aside.open("ab") as stream:
            stream.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise write_error(aside, error) from None
    count = f"{len(lines)} line{'s' * (len(lines) > 1)}"
    report(Notice(f"{file}: {count} not of a run moved to {aside}.", warning=True))


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
