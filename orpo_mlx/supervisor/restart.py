"""With which settings a run goes on after a death, and when no more is tried. No processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orpo_mlx.config.groups import LEAVE
from orpo_mlx.config.train import TrainConfig
from orpo_mlx.events import Saved, Started, StepDone
from orpo_mlx.run_folder.settings import (
    MAY_CHANGE,
    RULES,
    load_run_config,
    rules_of,
    stored_settings,
)
from orpo_mlx.supervisor.event_lines import MemoryLimit, Message
from orpo_mlx.supervisor.faults import Death

MOST_DEATHS = 3


@dataclass
class Reports:
    """What the children of one run have reported so far."""

    begun: bool = False  # steps: from then on the run folder's files are the run's own
    announced: int | None = None  # the step of the newest checkpoint
    step: int = 0
    micro_batch_size: int = 0
    last_peak_bytes: float = 0
    limit_bytes: int = 0

    def __call__(self, message: Message) -> None:
        match message:
            case Saved(step):
                self.announced = self.step = step
            case Started(step, micro_batch_size=size):
                self.begun, self.step, self.micro_batch_size = True, step, size
            case StepDone(step, metrics):
                self.step = step
                self.last_peak_bytes = 1e9 * metrics.get("peak_memory_gb", 0)
            case MemoryLimit(limit):
                self.limit_bytes = limit

    def begin(self) -> None:
        """A new child begins, whose steps report memory of their own."""
        self.last_peak_bytes = 0


@dataclass
class Deaths:
    """How often children have died, all together and since the run came forward last."""

    total: int = 0
    in_a_row: int = 0  # without a new checkpoint or other settings between
    bare_signals: int = 0  # without a new checkpoint between
    _checkpoint: int | None = None

    def count(self, death: Death, announced: int | None) -> None:
        """Count a death; `announced` is the newest checkpoint of the run."""
        if announced != self._checkpoint:
            self.in_a_row = self.bare_signals = 0
            self._checkpoint = announced
        self.total += 1
        self.in_a_row += 1
        self.bare_signals = self.bare_signals + 1 if death.bare_signal else 0

    def settings_changed(self) -> None:
        """The next child computes otherwise, which is a try of its own."""
        self.in_a_row = self.bare_signals = 0

    @property
    def too_many(self) -> bool:
        return self.in_a_row >= MOST_DEATHS


def settings_to_go_on(
    config: TrainConfig, announced: int | None, changes: Mapping[str, int]
) -> TrainConfig:
    """The settings of the next child.

    From the newest checkpoint that the run announced; without one the same settings again, which
    replace what the run itself has left. Whether the folder was free was checked before the first
    child began.
    """
    if config.resume or announced is not None:
        return _resumed(config, changes)
    return config.model_copy(update={**changes, "overwrite": True})


def _resumed(config: TrainConfig, changes: Mapping[str, int]) -> TrainConfig:
    """As `orpo-mlx train --resume` would go on, with what this call was given for itself."""
    given = config.model_fields_set & (MAY_CHANGE - {"output", "overwrite", "resume"})
    own: dict[str, Any] = {name: getattr(config, name) for name in given | {LEAVE}}
    return stored_settings(config.output, **{**own, **changes, "resume": True})


def rules_of_run(config: TrainConfig) -> int:
    """The rules that a run goes on by; those of new runs where it begins again."""
    return rules_of(load_run_config(config.output)) if config.resume else RULES
