"""Options of the commands that bring models and adapters in and out, each declared once."""

from pathlib import Path

from orpo_mlx.options import Options, option


class FolderOutput(Options):
    """A folder that is written whole, and replaced only when asked."""

    output: Path = option("Run", ..., "Folder to write.", metavar="FOLDER")
    overwrite: bool = option("Run", False, "Replace the folder in --output.")
