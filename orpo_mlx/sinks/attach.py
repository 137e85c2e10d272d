"""From settings to the callbacks that send a run's metrics elsewhere. Imports no mlx."""

from collections.abc import Iterator
from contextlib import contextmanager

from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Callback
from orpo_mlx.sinks.feed import Opener, Sink
from orpo_mlx.sinks.tensorboard import open_tensorboard
from orpo_mlx.sinks.trackio import open_trackio
from orpo_mlx.sinks.wandb import open_wandb

OPENERS: dict[str, Opener] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "trackio": open_trackio,
}


@contextmanager
def sinks_for(config: TrainConfig, report: Callback) -> Iterator[list[Sink]]:
    """A sink for each --log-to, closed with the block; their warnings go to `report`."""
    names = dict.fromkeys(config.log_to)  # one that is given twice is one
    sinks = [Sink(name, OPENERS[name], config.output, report) for name in names]
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.close()
