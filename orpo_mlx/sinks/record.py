"""What a sink is given of a run, and what it already has of it. Imports no mlx."""

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from orpo_mlx.files import replacing
from orpo_mlx.public_names import public_name
from orpo_mlx.run_folder.folder import SINKS
from orpo_mlx.run_folder.settings import load_run_config

PROJECT = "orpo-mlx"
Row = Mapping[str, float]  # of metrics.jsonl


class Sent(NamedTuple):
    """The last step of which a sink has the row: of training, and of held-out pairs; -1: none."""

    step: int = -1
    eval_step: int = -1

    def has(self, row: Row) -> bool:
        return row["step"] <= (self.eval_step if "eval_loss" in row else self.step)

    def after(self, row: Row) -> "Sent":
        name = "eval_step" if "eval_loss" in row else "step"
        return self._replace(**{name: int(row["step"])})


def sent_rows(rows: Iterable[Row]) -> Sent:
    """What a sink has that gives back these rows, in any order."""
    sent = Sent()
    for row in rows:
        if not sent.has(row):
            sent = sent.after(row)
    return sent


class SinkWriter(Protocol):
    """A sink that is open for one run; any of its methods may raise, or take long.

    What `write` was given survives a kill a second later.
    """

    @property
    def sent(self) -> Sent | None:
        """What was there when it was opened; None where that cannot be read back."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class SinkRun(NamedTuple):
    """A run as sinks may know it: no path of this machine is in its name or settings."""

    output: Path
    name: str
    id: str  # the same for as long as the run folder is the same
    settings: dict[str, Any]


def open_run(output: Path) -> SinkRun:
    """The run of a folder that has its config.yaml; its id is made when it is first asked for."""
    settings = {name: public_name(value) for name, value in load_run_config(output).items()}
    return SinkRun(output, output.resolve().name, _id_of(output), settings)


def load_sent(output: Path, sink: str) -> Sent:
    """What a sink that cannot be read back was sent, by the run folder's own record."""
    return Sent(*_load(output).get(sink, Sent()))


def save_sent(output: Path, sink: str, sent: Sent) -> None:
    """Keep that record; one sink of a run at a time."""
    _save(output, _load(output) | {sink: list(sent)})


def _id_of(output: Path) -> str:
    stored = _load(output).get("id")
    if not isinstance(stored, str):
        stored = uuid.uuid4().hex[:8]
        _save(output, _load(output) | {"id": stored})
    return stored


def _load(output: Path) -> dict[str, Any]:
    try:
        content = json.loads((output / SINKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save(output: Path, content: Mapping[str, Any]) -> None:
    with replacing(output / SINKS) as file:
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")
