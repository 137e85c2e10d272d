"""What a parent hands over to its training child: settings and open descriptors."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from orpo_mlx.config.train import TrainConfig

VARIABLE = "ORPO_MLX_CHILD"


class Handover(NamedTuple):
    """Descriptors that a child inherits: the settings to read, the pipe to write, the lock to hold.

    `lock` is -1 where the file system has none.
    """

    settings: int
    events: int
    lock: int

    def environment(self) -> dict[str, str]:
        """The environment of the child."""
        return os.environ | {VARIABLE: json.dumps(self._asdict())}

    def descriptors(self) -> list[int]:
        """Those that the child inherits."""
        return [descriptor for descriptor in self if descriptor >= 0]


@contextmanager
def settings_file(config: TrainConfig) -> Iterator[int]:
    """A descriptor from which a child reads these settings; the file has no name."""
    with tempfile.TemporaryFile() as file:
        values = config.model_dump(mode="json", exclude_unset=True)
        file.write(json.dumps(values).encode())
        file.seek(0)
        yield file.fileno()


def receive_handover() -> Handover | None:
    """What a parent handed over to this process, once; None in a process without such a parent.

    Processes that this one starts inherit none of it.
    """
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    handover = Handover(**json.loads(text))
    for descriptor in handover.descriptors():
        os.set_inheritable(descriptor, False)
    return handover


def received_settings(handover: Handover) -> TrainConfig:
    """The settings that were handed over; those that were not given stay so."""
    with os.fdopen(handover.settings, "rb") as file:
        values: dict[str, Any] = json.load(file)
    return TrainConfig.model_validate(values)
