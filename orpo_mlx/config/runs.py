"""Options of `orpo-mlx runs list|show|compare|watch|clean`, each declared once."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from orpo_mlx.config.groups import Options, ReplaceOption, option
from orpo_mlx.config.parsers import folders, one_word

Folders = Annotated[list[Path], BeforeValidator(folders)]


class FoldersArgument(Options):
    """Runs, or folders that hold them."""

    folders: Folders = option(
        "Run",
        [Path("adapters")],
        "Run folders, or folders that hold some.",
        flags=("FOLDER",),
        metavar="[FOLDER...]",
        shown_default="adapters",
    )


class RunsListConfig(FoldersArgument):
    """Options of `orpo-mlx runs`."""


class RunArgument(Options):
    """One run."""

    run: Annotated[Path, BeforeValidator(one_word)] = option(
        "Run", ..., "Run folder.", flags=("FOLDER",), metavar="FOLDER"
    )


class RunsShowConfig(ReplaceOption, RunArgument):
    """Options of `orpo-mlx runs show`."""

    png: Path | None = option("Run", None, "Write the curves as an image, too.", metavar="FILE")


class RunsCompareConfig(ReplaceOption):
    """Options of `orpo-mlx runs compare`."""

    runs: Folders = option(
        "Run",
        ...,
        "Run folders, two or more.",
        flags=("FOLDER",),
        metavar="FOLDER FOLDER...",
        min_length=2,
        max_length=8,
    )
    png: Path | None = option(
        "Run",
        None,
        "Write the curves of all into one image.",
        flags=("--png", "--output"),
        metavar="FILE",
    )


class RunsWatchConfig(RunArgument):
    """Options of `orpo-mlx runs watch`."""


class RunsCleanConfig(FoldersArgument):
    """Options of `orpo-mlx runs clean`."""

    yes: bool = option("Run", False, "Remove without asking.", flags=("-y", "--yes"))
