"""state.json: what a run is doing, or how it ended, for other processes. Imports no mlx."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Event, Finished, Listeners, Saved, StepDone
from orpo_mlx.files import load_json_object, replacing, save_json
from orpo_mlx.run_folder.folder import RUN_STATE
from orpo_mlx.run_folder.lock import is_held

Condition = Literal["running", "done", "stopped", "failed", "interrupted"]
KILLED = "killed, or the machine went down"


class RunState(NamedTuple):
    """What state.json holds."""

    state: Condition
    reason: str  # of a stop, a failure, an interruption; else empty
    step: int  # done when this was written: at the start, at checkpoints, at the end
    steps: int  # of the whole run
    started: str  # ISO 8601, when the run was begun; a resumed run keeps it
    updated: str


def load_state(folder: Path) -> RunState | None:
    """The state of a run; None where no state.json can be read.

    A `running` that nobody holds the lock of is `interrupted`.
    """
    state = _read(folder)
    while state and state.state == "running" and is_held(folder) is False:
        again = _read(folder)
        if again == state:
            return state._replace(state="interrupted", reason=KILLED)
        state = again  # it ended, or began, between the two looks
    return state


def save_state(folder: Path, state: RunState) -> None:
    """Write state.json whole, for who holds the lock; raises OrpoError where that cannot be."""
    with replacing(folder / RUN_STATE) as file:
        save_json(file, state._asdict())


@contextmanager
def recording(output: Path, report: Listeners, *, step: int, steps: int) -> Iterator[None]:
    """Keep state.json true while the block runs a run from `step` to `steps`, and of its end."""
    record = _Record(output, report, step, steps)
    record.write("running")
    with report.also(record):
        try:
            yield
        except BaseException as error:
            with suppress(OrpoError):  # the disk is full: that is the error already
                record.write_failure(error)
            raise


class _Record:
    """A callback that writes state.json at each checkpoint and at the end."""

    def __init__(self, output: Path, report: Listeners, step: int, steps: int):
        self.output, self.report, self.step, self.steps = output, report, step, steps
        earlier = _read(output)
        self.started = earlier.started if earlier else _now()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone | Saved | Finished):
            self.step = event.step
        if isinstance(event, Saved):
            self.write("running")
        elif isinstance(event, Finished):
            self.write(*(("stopped", self.report.reason) if event.stopped else ("done",)))

    def write(self, state: Condition, reason: str = "") -> None:
        now = RunState(state, reason, self.step, self.steps, self.started, _now())
        save_state(self.output, now)

    def write_failure(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.write("interrupted", self.report.reason or str(error) or "Ctrl-C")
            return
        first = str(error).partition("\n")[0]
        kind = "" if isinstance(error, OrpoError) else type(error).__name__
        self.write("failed", ": ".join(part for part in (kind, first) if part))


def _read(folder: Path) -> RunState | None:
    try:
        state = RunState(**load_json_object(folder / RUN_STATE))
    except (OrpoError, TypeError):
        return None
    texts = (state.reason, state.started, state.updated)
    right = type(state.step) is type(state.steps) is int and all(isinstance(t, str) for t in texts)
    return state if right and state.state in get_args(Condition) else None


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="seconds")
