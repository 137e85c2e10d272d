"""Options of `orpo-mlx data preview|check|split|convert|stats`, each declared once."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from orpo_mlx.config.groups import EncodeOptions, ReplaceOption, ShownOptions, SourceOptions, option
from orpo_mlx.config.parsers import KeyValues


class DataPreviewConfig(ReplaceOption, ShownOptions):
    """Options of `orpo-mlx data preview`."""

    pairs: int = option("Run", 3, "Pairs to show.", flags=("-n", "--pairs"), ge=1)
    seed: int | None = option(
        "Run", None, "Show random pairs, drawn with this seed.", shown_default="the first", ge=0
    )
    html: Path | None = option("Run", None, "Write an HTML page, too.", metavar="FILE")


class DataCheckConfig(ReplaceOption, EncodeOptions, ShownOptions):
    """Options of `orpo-mlx data check`."""

    pairs: int = option(
        "Run", 200, "Pairs of each split that --model judges.", flags=("-n", "--pairs"), ge=1
    )
    threshold: KeyValues = option(
        "Run",
        {},
        "Threshold from which on something is a finding; repeatable.",
        metavar="NAME=VALUE",
    )
    seed: int = option("Run", 0, "Seed of samples and folds.", ge=0, le=2**32 - 1)
    html: Path | None = option("Run", None, "Write an HTML page with plots, too.", metavar="FILE")
    strict: bool = option("Run", False, "Exit with 2 when something severe is found.")


class DataSplitConfig(ReplaceOption, SourceOptions):
    """Options of `orpo-mlx data split`."""

    output: Path = option("Run", ..., "Folder for train, valid and test.jsonl.", metavar="FOLDER")
    valid_fraction: float = option(
        "Run", 0.05, "Share of the prompts whose pairs go to valid.jsonl.", ge=0, lt=1
    )
    test_fraction: float = option(
        "Run", 0.05, "Share of the prompts whose pairs go to test.jsonl.", ge=0, lt=1
    )
    seed: int = option("Run", 0, "Seed of the split.", ge=0, le=2**32 - 1)

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"--valid-fraction {self.valid_fraction:g} and --test-fraction "
                f"{self.test_fraction:g}: leave no pairs to train on"
            )
        return self


class DataConvertConfig(ReplaceOption, SourceOptions):
    """Options of `orpo-mlx data convert`."""

    output: Path = option("Run", ..., "File to write, .jsonl or .parquet.", metavar="FILE")


class DataStatsConfig(ShownOptions):
    """Options of `orpo-mlx data stats`."""
