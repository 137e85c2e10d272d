"""A run's metrics as TensorBoard's event files, in the run folder. Needs neither torch nor TF."""

import time
from pathlib import Path

from orpo_mlx.extras import import_extra
from orpo_mlx.run_folder.folder import TENSORBOARD
from orpo_mlx.sinks.record import Row, Sent, SinkRun, sent_rows


class TensorBoardWriter:
    """Appends events, each on the disk when `write` returns: a kill loses none."""

    def __init__(self, folder: Path):
        self.sent = _read_back(folder)
        events = import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = import_extra("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        self._summary = import_extra("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        self._file = events.EventFileWriter(str(folder))

    def write(self, row: Row) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        step, summary = int(row["step"]), self._summary(value=values)
        self._file.add_event(self._event(step=step, wall_time=time.time(), summary=summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def open_tensorboard(run: SinkRun) -> TensorBoardWriter:
    """The event files of a run; raises OrpoError if tensorboard is not installed."""
    return TensorBoardWriter(run.output / TENSORBOARD)


def _read_back(folder: Path) -> Sent:
    """What the event files hold; of one that a kill cut short, what is whole."""
    reading = import_extra("tensorboard.backend.event_processing.event_accumulator", "tensorboard")
    if not folder.is_dir():
        return Sent()
    events = reading.EventAccumulator(str(folder), size_guidance={reading.SCALARS: 0}).Reload()
    known = [name for name in ("loss", "eval_loss") if name in events.Tags()[reading.SCALARS]]
    return sent_rows(
        {"step": e.step, name: e.value} for name in known for e in events.Scalars(name)
    )
