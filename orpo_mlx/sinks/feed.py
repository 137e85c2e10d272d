"""The callback of a sink: its rows go through a thread of its own. Imports no mlx.

Whatever the sink does there, the run goes on: a failure is one warning, and what was not sent then
is sent when the run is resumed.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from orpo_mlx.errors import OrpoError
from orpo_mlx.events import Callback, Evaluated, Event, Finished, Notice, Started, StepDone
from orpo_mlx.run_folder.folder import METRICS
from orpo_mlx.sinks.record import Row, SinkRun, SinkWriter, load_sent, open_run, save_sent
from orpo_mlx.training.metrics.log import load_metrics

MOST_WAITING = 10_000  # rows; about 20 MB
CLOSE_SECONDS = 60.0
Opener = Callable[[SinkRun], SinkWriter]


class Sink:
    """Sends the metrics of the run in `output`; a callback of `train`.

    Rows of metrics.jsonl that the sink has not are sent first: a run may get a sink at any resume.
    """

    def __init__(self, name: str, opener: Opener, output: Path, report: Callback):
        self.name = name
        self._opener, self._output, self._report = opener, output, report
        self._queue: queue.Queue[Row | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failure = ""
        self._warned = False

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._start(event.step)
            case StepDone() | Evaluated():
                self._put({"step": event.step, **event.metrics})
            case Finished():
                self._start(event.step)  # a finished run that is resumed begins no step
                self.close()
        self._warn()

    def close(self) -> None:
        """Send what is left, for at most CLOSE_SECONDS; also after a run that failed."""
        if self._thread is None or self._failure:
            return
        self._put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._failure = self._failure or f"not done after {CLOSE_SECONDS:.0f} seconds"
        self._thread = None
        self._warn()

    def _start(self, step: int) -> None:
        """Open the sink, once: a supervised run starts again after each of its processes."""
        if self._thread or self._failure:
            return
        try:
            run = open_run(self._output)
        except (OrpoError, OSError) as error:
            self._failure = str(error)
            return
        self._thread = threading.Thread(
            target=self._work, args=(run, step), daemon=True, name=f"sink {self.name}"
        )
        self._thread.start()

    def _put(self, item: Row | None) -> None:
        if self._thread is None or self._failure:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._failure = f"{MOST_WAITING:,} steps behind"

    def _warn(self) -> None:
        """Report the failure, from the thread that the run reports from."""
        if self._failure and not self._warned:
            self._warned = True
            self._report(
                Notice(
                    f"--log-to {self.name}: {self._failure.rstrip('.')}. The run goes on without "
                    "it; what is missing there is sent by the next --resume.",
                    warning=True,
                )
            )

    def _work(self, run: SinkRun, step: int) -> None:
        writer = None
        try:
            writer = self._opener(run)
            self._send(writer, step)
            writer.close()
        except (Exception, SystemExit) as error:  # whatever a library raises
            self._failure = self._failure or _sentence(error)
            if writer:
                with suppress(Exception, SystemExit):
                    writer.close()

    def _send(self, writer: SinkWriter, step: int) -> None:
        """Rows of metrics.jsonl up to `step`, then those of the queue, until None."""
        counted = writer.sent is None
        sent = load_sent(self._output, self.name) if writer.sent is None else writer.sent
        for row in self._rows(step):
            if sent.has(row):
                continue
            sent = sent.after(row)
            if counted:
                save_sent(self._output, self.name, sent)
            writer.write(row)

    def _rows(self, step: int) -> Iterator[Row]:
        file = self._output / METRICS
        earlier = load_metrics(file) if file.exists() else []
        yield from (row for row in earlier if row["step"] <= step)
        while (row := self._queue.get()) is not None:
            yield row


def _sentence(error: BaseException) -> str:
    """An error in one line; ours are sentences already."""
    text = " ".join(str(error).split())
    if isinstance(error, OrpoError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
