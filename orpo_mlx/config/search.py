"""Options of the commands that look for settings."""

from pathlib import Path
from typing import Any

from pydantic import model_validator

from orpo_mlx.config.groups import ReplaceOption, option
from orpo_mlx.config.train import LearnOptions, TrainConfig


class LrFindConfig(ReplaceOption, LearnOptions):
    """Options of `orpo-mlx lr-find`: those of the run to come, and the picture."""

    plot: Path = option("Run", Path("lr-find.png"), "Picture to write (PNG).", metavar="FILE")
    with_sft: bool = option(
        "Run", False, "Search with --beta 0, too: the same pairs without the odds-ratio loss."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_run_options(cls, values: Any) -> Any:
        """Accept the settings file of a run, of whose folder and checkpoints there is no need."""
        if not isinstance(values, dict):
            return values
        idle = TrainConfig.model_fields.keys() - cls.model_fields.keys()
        return {name: value for name, value in values.items() if name not in idle}

    def train_config(self, output: Path) -> TrainConfig:
        """The run to come, in another folder."""
        given = self.model_fields_set & LearnOptions.model_fields.keys()
        values = {name: getattr(self, name) for name in given}
        return TrainConfig.model_validate(values | {"output": output})
