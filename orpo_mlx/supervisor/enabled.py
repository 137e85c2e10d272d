"""Whether a run is trained in a child: where there is a GPU, unless others start the processes."""

import os

from orpo_mlx import backend
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.errors import OrpoError

# Set for each process by mlx.launch, Open MPI, and other MPI launchers.
LAUNCHERS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def is_supervised(config: TrainConfig) -> bool:
    """As --supervise says; by default on a GPU, and for what only a supervisor can do.

    Raises OrpoError for --segment-steps with --no-supervise.
    """
    if config.supervise is False and config.segment_steps:
        raise OrpoError("--segment-steps needs a supervised run: leave --no-supervise out.")
    if config.supervise is not None:
        return config.supervise
    if any(name in os.environ for name in LAUNCHERS):
        return False
    return bool(config.segment_steps) or backend.has_gpu()
