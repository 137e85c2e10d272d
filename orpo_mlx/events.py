"""What happens in a run, as values for callbacks. Imports no mlx."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Notice:
    """A sentence for the user; `warning` where something should be acted on."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class RowCounts:
    """What became of pairs on their way to token ids: how often, and what."""

    name: str
    rows: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Progress:
    """A stage that takes time: `done` of `total`, 0 where that is not known."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class PhaseTime:
    """How long one phase of the start took."""

    phase: str
    seconds: float


@dataclass(frozen=True)
class Started:
    """Training begins at optimizer step `step` of `steps`."""

    step: int
    steps: int
    trainable: int
    parameters: int
    micro_batch_size: int = 0  # pairs; 0 where it is not known


@dataclass(frozen=True)
class MicroBatchDone:
    """A part of optimizer step `step`, from 1, is computed: `done` of `total` micro-batches."""

    step: int
    done: int
    total: int


@dataclass(frozen=True)
class StepDone:
    """An optimizer step; `step` counts from 1.

    The metrics of one whose update was left out (--on-nan skip) are `skipped`, how many there are
    so far, and `learning_rate`.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """Validation after `step` steps; the metrics carry the prefix `eval_`."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Finished:
    """The end: by itself, or stopped before its last step."""

    step: int
    stopped: bool
    output: Path


@dataclass(frozen=True)
class SettingsChanged:
    """The supervisor goes on from `step` with other settings, since the run needs less memory."""

    step: int
    settings: Mapping[str, int]
    text: str


Event = (
    Notice
    | RowCounts
    | Progress
    | PhaseTime
    | Started
    | MicroBatchDone
    | StepDone
    | Evaluated
    | Saved
    | Finished
    | SettingsChanged
)
Callback = Callable[[Event], None]


def log_once(report: Callback, *, warning: bool = False) -> Callable[[str], None]:
    """Report every sentence once, however often it is logged."""
    reported = set[str]()

    def log(text: str) -> None:
        if text not in reported:
            reported.add(text)
            report(Notice(text, warning))

    return log


class StopRun(Exception):
    """Raised by a callback: save a checkpoint and end the run. Its text is kept as the reason."""


class Listeners:
    """Reports events to callbacks; remembers that one of them, or a signal, asked for an end."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks = list(callbacks)
        self.stop = False
        self.reason = ""  # why it is to stop

    def __call__(self, event: Event) -> None:
        for callback in self._callbacks:
            try:
                callback(event)
            except StopRun as stop:
                self.stop = True
                self.reason = self.reason or str(stop) or "a callback"

    @contextmanager
    def also(self, callback: Callback) -> Iterator[None]:
        """Report to `callback` too while the block runs, and to it first."""
        self._callbacks.insert(0, callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)
