"""The training child of a supervised run: what it is handed over, what it reports, how it ends."""

import time
import traceback
from collections.abc import Callable
from typing import Any

from orpo_mlx.cli.streams import forgiving_streams
from orpo_mlx.errors import DeviceError, OrpoError
from orpo_mlx.events import Event, PhaseTime, StepDone, StopRun
from orpo_mlx.supervisor.event_lines import Failure, MemoryLimit, MessagePipe, Result
from orpo_mlx.supervisor.faults import DEVICE_STATUS
from orpo_mlx.supervisor.handover import Handover, received_settings
from orpo_mlx.supervisor.signals import interrupting

INTERRUPTED = 130


def run_as_child(handover: Handover) -> int:
    """Train as the parent wants it; the exit status by which it knows how that ended."""
    send = MessagePipe(handover.events)
    with forgiving_streams(), interrupting():
        try:
            return _train(handover, send)
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            return _status_of(error, send)


def _train(handover: Handover, send: MessagePipe) -> int:
    from orpo_mlx import backend

    backend.prepare()
    started = time.perf_counter()
    from orpo_mlx.cli.train import run_facts
    from orpo_mlx.run_folder.lock import inherited
    from orpo_mlx.training.loop import train_in_locked_folder

    send(PhaseTime("imports", time.perf_counter() - started))
    send(MemoryLimit(backend.memory_limit_bytes()))
    config = received_settings(handover)
    segment = Segment(config.segment_steps)
    with inherited(config.output, handover.lock):
        result = train_in_locked_folder(config, [reporter(send), segment])
    send(Result(run_facts(result), result.stopped, segment.over and result.stopped))
    return INTERRUPTED if result.stopped else 0


def reporter(send: MessagePipe) -> Callable[[Event], None]:
    """Reports events to the parent; once it has ended, the run is to save and end, too."""

    def report(event: Event) -> None:
        send(event)
        if send.broken:
            raise StopRun("the process that watches the run has ended")

    return report


class Segment:
    """A callback that ends the run after so many steps of this process; None: never."""

    def __init__(self, steps: int | None):
        self._left = steps
        self.over = False

    def __call__(self, event: Event) -> None:
        if self._left is not None and isinstance(event, StepDone):
            self._left -= 1
            self.over = self._left <= 0
            if self.over:
                raise StopRun("--segment-steps")


def _status_of(error: Exception, send: Callable[[Any], None]) -> int:
    """The exit status for an error, which is reported to the parent or printed."""
    from orpo_mlx.cli.main import refused_by_the_machine
    from orpo_mlx.supervisor.device_errors import is_device_failure

    if isinstance(error, DeviceError) or is_device_failure(error):
        send(Failure(str(error) or type(error).__name__))
        return DEVICE_STATUS
    try:
        if isinstance(error, OSError):
            error = OrpoError(refused_by_the_machine(error))
    except OSError:
        pass
    if isinstance(error, OrpoError):
        send(Failure(str(error)))
    else:
        traceback.print_exception(error)
    return 1
