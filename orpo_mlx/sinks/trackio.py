"""A run's metrics for trackio: its local database, or the Space that its own variables name."""

import os

from orpo_mlx.extras import import_extra
from orpo_mlx.sinks.record import PROJECT, Row, Sent, SinkRun, sent_rows

# With one of these set, trackio sends to another machine.
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioWriter:
    """Logs rows by their step into the run's table."""

    def __init__(self, run: SinkRun):
        trackio = import_extra("trackio", "trackio")
        name = f"{run.name}-{run.id}"
        self.sent = None if any(map(os.environ.get, REMOTE)) else _read_back(name)
        self._run = trackio.init(
            project=PROJECT,
            name=name,
            config=run.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, row: Row) -> None:
        metrics = {name: value for name, value in row.items() if name != "step"}
        self._run.log(metrics, step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


def open_trackio(run: SinkRun) -> TrackioWriter:
    """The run in trackio; raises OrpoError if trackio is not installed."""
    return TrackioWriter(run)


def _read_back(name: str) -> Sent:
    """What the local database holds of a run."""
    storage = import_extra("trackio.sqlite_storage", "trackio").SQLiteStorage
    return sent_rows(storage.get_logs(PROJECT, name))
